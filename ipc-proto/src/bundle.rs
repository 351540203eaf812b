//! The bundle: one file with everything that runs on top of the kernel, made by the build from the manifest.
//!
//! Page 0 on: [`Header`], then [`ServiceRecord`]s in rank order, then [`RingRecord`]s; from the next page
//! boundary on the data: service images as they lie in memory and files. All little endian, all offsets in pages
//! from the start of the bundle. The kernel checks every number before it uses one.
//!
//! [`ServiceInfo`] is what the kernel shows each service of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::MAX_SERVICES;

/// Identifies a bundle: "CAISSON" and the version of this layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"CAISSON\x01");
/// Longest name, in bytes of UTF-8, padded with zeros.
pub const NAME: usize = 16;
/// Segments of an image at the most.
pub const MAX_SEGMENTS: usize = 4;
/// Files of a service at the most.
pub const MAX_FILES: usize = 4;
/// Port ranges of a service at the most.
pub const MAX_PORT_RANGES: usize = 4;
/// Rings at one service at the most.
pub const MAX_RINGS: usize = 64;

/// Declares what lies in memory as it is written here.
macro_rules! records {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    )* };
}

records! {
    /// The beginning of a bundle.
    pub struct Header {
        /// [`MAGIC`].
        pub magic: u64,
        /// How many service records follow.
        pub services: u32,
        /// How many ring records follow them.
        pub rings: u32,
        /// Length of the bundle in pages.
        pub pages: u64,
    }

    /// A piece of a service's image.
    #[derive(Default)]
    pub struct SegmentRecord {
        /// First page in the service's space.
        pub page: u64,
        /// Where its contents begin in the bundle, in pages. Meaningless if `file_pages` is 0.
        pub bundle_page: u64,
        /// Pages with contents.
        pub file_pages: u32,
        /// Pages in memory; what exceeds the contents is zero. 0: no such segment.
        pub pages: u32,
        /// Bits of [`Access`](crate::kernel::Access). Writable segments are copied at each start, others mapped as
        /// they lie. Nothing is both writable and executable.
        pub access: u32,
        /// Zero.
        pub spare: u32,
    }

    /// A file of a service.
    #[derive(Default)]
    pub struct FileRecord {
        /// First page in the bundle.
        pub bundle_page: u64,
        /// Length in bytes.
        pub bytes: u64,
    }

    /// A range of I/O ports.
    #[derive(Default)]
    pub struct PortRange {
        /// The first.
        pub first: u16,
        /// How many; 0: no such range.
        pub count: u16,
    }

    /// A service of the manifest. Its slot is its place among the records.
    pub struct ServiceRecord {
        /// Name, padded with zeros.
        pub name: [u8; NAME],
        /// Bit n: it may call the service in slot n. Only services of a higher rank may be here.
        pub may_call: u64,
        /// Bit n: it may ring the service in slot n.
        pub may_ring: u64,
        /// [`Caps`](crate::kernel::Caps).
        pub caps: u32,
        /// Rank: calls go from a lower number to a higher one.
        pub rank: u16,
        /// ISA interrupt line whose doorbell it gets, or 0xffff.
        pub interrupt: u16,
        /// Entry point.
        pub entry: u64,
        /// Stack in pages.
        pub stack_pages: u32,
        /// Heap in pages.
        pub heap_pages: u32,
        /// Milliseconds that one request may take.
        pub budget_ms: u32,
        /// 1 for a vmm: it may handle a VM.
        pub is_vmm: u32,
        /// The image.
        pub segments: [SegmentRecord; MAX_SEGMENTS],
        /// The files.
        pub files: [FileRecord; MAX_FILES],
        /// The I/O ports.
        pub ports: [PortRange; MAX_PORT_RANGES],
    }

    /// A ring between two services.
    pub struct RingRecord {
        /// Slot of the producer; [`KERNEL_SLOT`](crate::abi::KERNEL_SLOT) is the kernel, for its log.
        pub producer: u16,
        /// Slot of the consumer.
        pub consumer: u16,
        /// The ring's number in the producer's list: page [`RINGS`](crate::layout::RINGS) + number.
        pub producer_number: u16,
        /// The ring's number in the consumer's list.
        pub consumer_number: u16,
        /// See [`RingUse`].
        pub purpose: u32,
        /// For a console ring: the channel.
        pub channel: u32,
    }
}

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
    }
}

records! {
    /// One of a service's own rings, as its info page tells.
    #[derive(Default)]
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

    /// What the kernel tells a service about itself: the page at [`INFO`](crate::layout::INFO), read-only.
    pub struct ServiceInfo {
        /// Its id, as [`ServiceId::bits`](crate::addr::ServiceId::bits).
        pub id: u32,
        /// CPUs that run.
        pub cpus: u32,
        /// TSC ticks a millisecond.
        pub tsc_khz: u64,
        /// TSC at boot: logs count from there.
        pub boot_tsc: u64,
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
        /// Names of all services by slot.
        pub names: [[u8; NAME]; MAX_SERVICES],
        /// 1 where the service in that slot is a vmm.
        pub is_vmm: [u8; MAX_SERVICES],
    }
}

const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<ServiceRecord>() == 16 + 8 * 2 + 8 + 8 + 16 + 4 * 32 + 4 * 16 + 16);
const _: () = assert!(size_of::<RingRecord>() == 16);
const _: () = assert!(size_of::<ServiceInfo>() <= crate::addr::PAGE_SIZE as usize);

/// A name without its padding.
pub fn name(bytes: &[u8; NAME]) -> &str {
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(NAME);
    core::str::from_utf8(&bytes[..len]).unwrap_or("?")
}
