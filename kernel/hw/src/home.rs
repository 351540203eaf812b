//! The services' homes: their address spaces, and how they are made pristine.
//!
//! What a service may write is the kernel's memory, lent to it for good; so a service can be started again although
//! memory itself is dead. A ring's contents outlive its producer: what it sent is still to be read.

use caisson_proto::layout::USER_END;

use crate::prelude::*;
use zerocopy::IntoBytes;

/// Pages of a service's own, and what they hold when it starts.
#[derive(Clone, Copy, Debug)]
pub struct Writable {
    /// The first frame.
    pub first: Frame,
    /// How many.
    pub pages: u64,
    /// What they begin with, in the bundle; the rest is zero.
    pub contents: &'static [u8],
}

/// A service's space and how to make it pristine.
pub struct Home {
    /// The space.
    pub space: Space,
    /// Its I/O ports.
    pub ports: [PortRange; 4],
    /// Where it starts.
    pub entry: u64,
    /// The frame of its info page.
    pub info: Frame,
    /// What is made anew at each start: what it writes, and its info page.
    pub writable: heapless::Vec<Writable, MAX_MAPS>,
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
        for Writable { first, pages, contents } in &self.writable {
            (first.0..first.0 + pages).for_each(|frame| kmap::zero(Frame(frame)));
            for (frame, page) in (first.0..).zip(contents.chunks(PAGE_SIZE as usize)) {
                kmap::write(Frame(frame), 0, page);
            }
        }
        let cpus = KERNEL.cpu_count() as u32;
        let head = InfoHead { id, cpus, tsc_khz: clock::tsc_khz(), boot_tsc: clock::boot_tsc() };
        kmap::write(self.info, 0, head.as_bytes());
        self.entry % USER_END
    }
}
