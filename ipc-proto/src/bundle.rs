//! The bundle: one file with everything that runs on top of the kernel, made by the build from the manifest.
//!
//! Page 0 on: [`Header`], then [`ServiceRecord`]s in rank order, then [`MapRecord`]s; from the next page
//! boundary on the data: service images as they lie in memory, files, and the services' info pages
//! ([`ServiceInfo`](crate::info::ServiceInfo)). All little endian, all offsets in pages from the start of the bundle. The
//! kernel checks every number before it uses one.

/// Identifies a bundle: "CAISSON" and the version of this layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"CAISSON\x03");
/// Port ranges of a service at the most.
pub const MAX_PORT_RANGES: usize = 4;
/// Rings at one service at the most.
pub const MAX_RINGS: usize = 64;

records! {
    /// The beginning of a bundle.
    pub struct Header {
        /// [`MAGIC`].
        pub magic: u64,
        /// How many service records follow.
        pub services: u32,
        /// How many records of mappings follow them.
        pub maps: u32,
        /// Length of the bundle in pages.
        pub pages: u64,
        /// Pages that services share, zero at boot.
        pub shared: u64,
    }

    /// Pages that a service sees.
    pub struct MapRecord {
        /// The first, in the service's space.
        pub page: u64,
        /// Where they, or their contents, begin among the bundle's pages or those that are shared.
        pub first: u64,
        /// Of the service's own, how many have contents; what is more is zero.
        pub file_pages: u32,
        /// How many there are.
        pub pages: u32,
        /// Bits of [`Access`](crate::kernel::Access). Nothing is both writable and executable.
        pub access: u32,
        /// Slot of the service.
        pub service: u16,
        /// See the constants.
        pub kind: u16,
    }

    /// A range of I/O ports.
    pub struct PortRange {
        /// The first.
        pub first: u16,
        /// How many; 0: no such range.
        pub count: u16,
    }

    /// A service of the manifest. Its slot is its place among the records.
    pub struct ServiceRecord {
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
        /// Milliseconds that one request may take.
        pub budget_ms: u32,
        /// 1 for a vmm: it may handle a VM.
        pub is_vmm: u32,
        /// The I/O ports.
        pub ports: [PortRange; MAX_PORT_RANGES],
    }

    /// What only the kernel knows of a service's info page: its beginning.
    pub struct InfoHead {
        /// The service's id, as [`ServiceId::bits`](crate::addr::ServiceId::bits).
        pub id: u32,
        /// CPUs that run.
        pub cpus: u32,
        /// TSC ticks a millisecond.
        pub tsc_khz: u64,
        /// TSC at boot: logs count from there.
        pub boot_tsc: u64,
    }
}

impl MapRecord {
    /// The bundle's pages themselves, never writable.
    pub const BUNDLE: u16 = 0;
    /// Memory of the service's own, made anew at each start.
    pub const OWN: u16 = 1;
    /// Pages that services share: rings. They are never made anew.
    pub const SHARED: u16 = 2;
}
