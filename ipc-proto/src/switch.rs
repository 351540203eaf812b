//! switch: passes Ethernet frames between the guests of a network.
//!
//! Which vmm has a port, in which network and with which address, the build says in the switch's file of [`PortRecord`]s; no vmm
//! can claim another. A port comes to life with the first call of its vmm's life. Frames travel in lent pages as a *batch*: of each
//! frame its length in bytes (u16, little endian), then the frame, from the destination's address to the payload's end,
//! without the check sequence. What lies in an [`Area`] past the batch means nothing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{MAX_LEASE_PAGES, Status};
use crate::addr::PAGE_SIZE;

/// Errors are [`Status`] values.
pub type Error = Status;

/// The service's name in the manifest.
pub const NAME: &str = "switch";
/// Number of its file, a [`PortRecord`] for each service's slot.
pub const FILE: usize = 0;
/// Ports at the most: one for each guest that the console has a channel for.
pub const MAX_PORTS: usize = crate::console::MAX_CHANNELS - 1;
/// Bytes of an Ethernet header: two addresses and a type (IEEE 802.3, section 3.1.1).
pub const HEADER: usize = 14;
/// Bytes of a frame at the most: header, a VLAN's tag, 1,500 bytes.
pub const MAX_FRAME: usize = HEADER + 4 + 1500;
/// Bytes of a batch at the most.
pub const AREA: usize = 4 * PAGE_SIZE as usize;
/// The doorbell by which a vmm is told that frames wait for it.
pub const FRAMES: u64 = 1 << 30;

// A vmm hears memory and the switch, and must tell them apart.
const _: () = assert!(FRAMES & (crate::memory::NEED | crate::stats::READ) == 0);

/// Bytes of a frame's length.
const LENGTH: usize = size_of::<u16>();

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The port of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortRecord {
    /// Its network; 0: it has no port.
    pub network: u8,
    /// 0.
    pub spare: u8,
    /// The one address that it may send from.
    pub mac: Mac,
}

/// Pages for a batch, and for nothing else, so that they can be lent.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Area(pub [u8; AREA]);

const _: () = assert!(size_of::<Area>() as u64 <= MAX_LEASE_PAGES * PAGE_SIZE);

impl Area {
    /// One of zeros.
    pub const fn zeroed() -> Self {
        Self([0; AREA])
    }
}

/// Whether a frame can have so many bytes.
pub const fn is_length(bytes: usize) -> bool {
    HEADER <= bytes && bytes <= MAX_FRAME
}

/// Begins a frame of `bytes` bytes at `at` of a batch: the place for it, and where the next one begins. `None` if there is no
/// room, or no frame is so long.
pub fn begin(batch: &mut [u8], at: usize, bytes: usize) -> Option<(&mut [u8], usize)> {
    let length = u16::try_from(bytes).ok().filter(|_| is_length(bytes))?;
    let start = at.checked_add(LENGTH)?;
    let end = start.checked_add(bytes)?;
    batch.get(..end)?;
    batch.get_mut(at..start)?.copy_from_slice(&length.to_le_bytes());
    Some((batch.get_mut(start..end)?, end))
}

/// The first frame of a batch, and the rest of it. `None` for what is no frame, and at the end.
pub fn split(batch: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = batch.split_first_chunk::<LENGTH>()?;
    let length = usize::from(u16::from_le_bytes(*length));
    rest.split_at_checked(length).filter(|_| is_length(length))
}

/// How many frames a batch has; `None` if it isn't frames to its end.
pub fn count(batch: &[u8]) -> Option<u64> {
    let (mut rest, mut count) = (batch, 0);
    while !rest.is_empty() {
        rest = split(rest)?.1;
        count += 1;
    }
    Some(count)
}

replies! {
    /// What became of a batch.
    pub struct Sent {
        /// Frames that no port took: not from the sender's own address, for nobody, or for a queue that was full.
        pub dropped: u64,
    }
    /// A batch.
    pub struct Fetched {
        /// Its bytes.
        pub bytes: u64,
        /// More frames wait. The doorbell isn't rung for them.
        pub more: bool,
    }
    /// What a port did since its vmm's life or the switch's own began, in frames and bytes of frames.
    pub struct PortReport {
        /// Sent, the dropped ones counted.
        pub sent: u64,
        /// Bytes of these.
        pub sent_bytes: u64,
        /// Of those sent, how many weren't from its own address.
        pub foreign: u64,
        /// Fetched.
        pub received: u64,
        /// Bytes of these.
        pub received_bytes: u64,
        /// For it, and dropped because its queue was full.
        pub missed: u64,
    }
}

requests! {
    /// Every request to the switch. `NotFound` for a caller without a port.
    pub enum SwitchCall;

    /// Pass the frames of a batch on, which lies at the beginning of the lent pages. `BadLease` without pages, or with fewer than
    /// that; `Malformed`, and nothing is sent, if it isn't frames to its end, or longer than an [`Area`].
    Send = 1 { /** Its bytes. */ bytes: u64 } -> Sent;
    /// Write what waits for the caller to the lent pages, as far as there is room. `BadLease` without pages, or if they can't be
    /// written.
    Fetch = 2 {} -> Fetched;
    /// What the caller's port did.
    Report = 3 {} -> PortReport;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_frames_to_its_end() {
        let mut batch = [0; 64];
        let (place, next) = begin(&mut batch, 0, HEADER).unwrap();
        place.fill(1);
        let (place, end) = begin(&mut batch, next, HEADER + 1).unwrap();
        place.fill(2);
        assert_eq!(count(&batch[..end]), Some(2));
        let (first, rest) = split(&batch[..end]).unwrap();
        assert_eq!((first, split(rest)), (&[1; HEADER][..], Some((&[2; HEADER + 1][..], &[][..]))));
        for bytes in (1..end).filter(|bytes| *bytes != next) {
            assert_eq!(count(&batch[..bytes]), None, "{bytes}");
        }
        assert_eq!((count(&[]), split(&[])), (Some(0), None));
    }

    #[test]
    fn what_is_too_short_or_too_long_is_no_frame() {
        let mut batch = [0; MAX_FRAME + 8];
        for bytes in [0, HEADER - 1, MAX_FRAME + 1, usize::MAX] {
            assert!(begin(&mut batch, 0, bytes).is_none(), "{bytes}");
        }
        assert!(begin(&mut batch, 7, MAX_FRAME).is_none(), "no room");
        assert!(begin(&mut batch, usize::MAX, HEADER).is_none());
        assert_eq!(batch, [0; MAX_FRAME + 8], "nothing is written in vain");
        for bytes in [HEADER - 1, MAX_FRAME + 1] {
            batch[..2].copy_from_slice(&(bytes as u16).to_le_bytes());
            assert_eq!(count(&batch[..2 + bytes]), None, "{bytes}");
        }
    }
}
