//! The services' homes: their address spaces, and how they are made pristine.
//!
//! What a service may write is the kernel's memory, lent to it for good; so a service can be started again although
//! memory itself is dead. A ring's contents outlive its producer: what it sent is still to be read.

use caisson_proto::layout::{INFO, USER_END};

use crate::prelude::*;
use zerocopy::IntoBytes;

/// A service's space and how to make it pristine.
pub struct Home {
    /// The space.
    pub space: Space,
    /// Its I/O ports.
    pub ports: [PortRange; 4],
    /// What the bundle says of it, and the bundle: its own pages are made anew from there at each start.
    pub record: &'static ServiceRecord,
    /// See `record`.
    pub bundle: &'static [u8],
    /// The first frame of each of its mappings.
    pub frames: [Frame; MAX_MAPS],
}

static HOMES: [Once<Home>; MAX_SERVICES] = [const { Once::new() }; MAX_SERVICES];

/// The home of the service in a slot.
pub(crate) fn home(slot: usize) -> Option<&'static Home> {
    HOMES[slot % MAX_SERVICES].get()
}

/// Boot: gives the service in a slot its home.
pub fn settle(slot: usize, home: Home) {
    if let Some(place) = HOMES.get(slot) {
        place.call_once(|| home);
    }
}

impl Home {
    /// Makes a service's memory what it was before its first start. Returns its entry point.
    pub(crate) fn reset(&self, id: u32) -> u64 {
        let cpus = KERNEL.cpu_count() as u32;
        let head = InfoHead { id, cpus, tsc_khz: clock::tsc_khz(), boot_tsc: clock::boot_tsc() };
        for (map, first) in self.record.maps.iter().zip(self.frames).filter(|(map, _)| map.own == 1) {
            (0..map.pages.into()).for_each(|page| kmap::zero(Frame(first.0 + page)));
            let contents = self.bundle.chunks(PAGE_SIZE as usize).skip(map.bundle_page as usize);
            for (frame, page) in (first.0..).zip(contents.take(map.file_pages as usize)) {
                kmap::write(Frame(frame), 0, page);
            }
            if map.page == INFO / PAGE_SIZE {
                kmap::write(first, 0, head.as_bytes());
            }
        }
        self.record.entry % USER_END
    }
}
