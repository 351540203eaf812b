//! Slots: each rule both ways, and all of it against a model that looks at everything.

mod changes;
mod events;
mod model;
mod refusals;
mod sharing;

use caisson_proto::memory::SlotFlags;
use caisson_proto::slots::GmemId;
use caisson_proto::slots::{GmemAddress, Region};

use super::coherence::Host;
use super::*;

type Small = Slots<1024, 64>;

const HOST: Host = Host { coherent: false };
const COHERENT: Host = Host { coherent: true };
const VM: VmId = VmId::new(3, 1);
const REGION: Region = Region(3);
const PAGES: u64 = 100_000;

fn table() -> Box<Small> {
    let mut slots = Box::new(Small::new());
    slots.vm_make(VM).unwrap();
    slots.region_make(VM, REGION, PAGES, Backing::ORDINARY).unwrap();
    slots
}

fn wanted(id: u16, gfn: u64, pages: u64, page: u64) -> Wanted {
    Wanted {
        id: SlotId(id),
        flags: SlotFlags::empty(),
        gfn: Gfn(gfn),
        pages,
        host: HostAddress { region: REGION, page },
        gmem: GmemAddress::default(),
    }
}

fn with_gmem(id: u16, gfn: u64, pages: u64, page: u64) -> Wanted {
    let gmem = GmemAddress { gmem: GmemId(1), page: 7 };
    Wanted { flags: SlotFlags::GMEM, gmem, ..wanted(id, gfn, pages, page) }
}

fn set(slots: &mut Small, wanted: Wanted) -> Result<Change, Error> {
    slots.set(VM, &wanted, HOST)
}

/// Changes a slot, and unmaps what has to be unmapped.
fn set_whole(slots: &mut Small, wanted: Wanted) -> Result<Change, Error> {
    match set(slots, wanted)? {
        Change::Emptying => slots.emptied(VM, Gfn(END)),
        change => Ok(change),
    }
}

/// A machine that has every page mapped until it is unmapped, and writes down what it is asked.
#[derive(Debug, Default)]
struct Fake {
    begun: std::vec::Vec<(u64, u64)>,
    unmapped: std::collections::BTreeSet<u64>,
    flushes: u32,
    ended: u32,
    reclaimed: u32,
    refuse: bool,
    stuck: bool,
}

impl Machine for Fake {
    fn begin(&mut self, _: VmId, start: Gfn, end: Gfn) -> Result<(), Status> {
        assert_eq!(self.begun.len(), self.ended as usize, "one at a time");
        if self.refuse {
            return Err(Status::Exhausted);
        }
        self.begun.push((start.0, end.0));
        Ok(())
    }
    fn unmap(&mut self, _: VmId, gfn: Gfn, pages: u64, most: u64) -> Result<Taken, Status> {
        let &(low, high) = self.begun.last().expect("a beginning");
        assert!(gfn.0 >= low && gfn.0 + pages <= high, "in its hull");
        if self.refuse {
            return Err(Status::Exhausted);
        }
        if self.stuck {
            return Ok(Taken { pages: 0, next: gfn });
        }
        let (mut taken, mut next) = (0, gfn.0);
        while next < gfn.0 + pages && taken < most {
            taken += u64::from(self.unmapped.insert(next));
            next += 1;
        }
        Ok(Taken { pages: taken, next: Gfn(next) })
    }
    fn flush(&mut self, _: VmId) {
        assert!(self.begun.len() > self.ended as usize, "before the end");
        self.flushes += 1;
    }
    fn end(&mut self, _: VmId) {
        self.ended += 1;
    }
    fn reclaimed(&mut self, _: VmId) {
        assert_eq!(self.begun.len(), self.ended as usize, "after the end");
        self.reclaimed += 1;
    }
}

fn pages(from: u64, to: u64) -> HostRange {
    HostRange { region: REGION, pages: from..to }
}
