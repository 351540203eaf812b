//! A service's info page: what the build and the kernel tell it about itself, read-only at
//! [`INFO`](crate::layout::INFO).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::MAX_SERVICES;
use crate::bundle::{InfoHead, MAX_RINGS};

/// Longest name, in bytes of UTF-8, padded with zeros.
pub const NAME: usize = 16;
/// Segments of an image at the most.
pub const MAX_SEGMENTS: usize = 4;
/// Shares at one service at the most.
pub const MAX_SHARES: usize = 16;
/// Files of a service at the most.
pub const MAX_FILES: usize = 4;

wire_enum! {
    /// What a ring carries.
    pub enum RingUse {
        /// defmt frames, one a message, to the board's console.
        Log = 0,
        /// Bytes of a guest's console, outward.
        ConsoleOut = 1,
        /// Bytes of a guest's console, inward.
        ConsoleIn = 2,
        /// [`Reclaimed`](crate::memory::Reclaimed) from memory to notifier.
        Reclaimed = 3,
        /// [`Notice`](crate::supervisor::Notice) from the supervisor to the console.
        Notices = 4,
        /// [`Resize`](crate::console::Resize) from the console to a vmm.
        Resize = 5,
    }
}

wire_enum! {
    /// What is in pages that a service shares with another for good.
    pub enum ShareUse {
        /// A VM's [statistics](crate::stats).
        Stats = 0,
    }
}

/// Pages that a service shares for good, as its info page tells: the holder writes, the other reads.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShareInfo {
    /// [`HOLDER`](Self::HOLDER), [`READER`](Self::READER), or 0: no such share.
    pub role: u8,
    /// [`ShareUse`].
    pub purpose: u8,
    /// The VM's channel on the console; 0 where no VM is concerned.
    pub channel: u16,
    /// Slot of the other side.
    pub peer: u16,
    /// How many pages.
    pub pages: u16,
    /// The first, counted from [`SHARES`](crate::stats::SHARES) in this service's space.
    pub first: u32,
}

impl ShareInfo {
    /// This service holds it, and writes.
    pub const HOLDER: u8 = 1;
    /// It reads.
    pub const READER: u8 = 2;
}

/// One of a service's own rings, as its info page tells.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RingInfo {
    /// 1: this service produces; 2: it consumes; 0: no such ring.
    pub role: u8,
    /// [`RingUse`].
    pub purpose: u8,
    /// For a console ring: the channel.
    pub channel: u16,
    /// Slot of the other side.
    pub peer: u16,
    /// Bits: the ring's number at the other side, for its doorbell.
    pub peer_number: u16,
}

/// The page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceInfo {
    /// The kernel's part.
    pub head: InfoHead,
    /// Length of the heap at [`HEAP`](crate::layout::HEAP) in bytes.
    pub heap_bytes: u64,
    /// Lengths of the files at [`FILES`](crate::layout::FILES) in bytes; 0: no such file.
    pub files: [u64; MAX_FILES],
    /// How many services there are.
    pub services: u32,
    /// How many of `rings` count.
    pub rings: u32,
    /// The rings, in the order of their pages at [`RINGS`](crate::layout::RINGS).
    pub ring: [RingInfo; MAX_RINGS],
    /// The shares, without gaps.
    pub share: [ShareInfo; MAX_SHARES],
    /// Names of all services by slot.
    pub names: [[u8; NAME]; MAX_SERVICES],
    /// 1 where the service in that slot is a vmm.
    pub is_vmm: [u8; MAX_SERVICES],
}

const _: () = assert!(size_of::<ServiceInfo>() <= crate::addr::PAGE_SIZE as usize);

/// A name without its padding.
pub fn name(bytes: &[u8; NAME]) -> &str {
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(NAME);
    core::str::from_utf8(&bytes[..len]).unwrap_or("?")
}
