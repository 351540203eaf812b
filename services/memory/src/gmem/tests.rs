//! gmem: each rule both ways, and what is left when something fails in the middle.

use std::collections::BTreeSet;

use caisson_proto::abi::Status;
use caisson_proto::addr::Gfn;
use caisson_proto::slots::{GmemAddress, SlotId};

use super::*;

type Small = Gmems<16, 8>;

const VM: VmId = VmId::new(2, 0);
const OTHER: VmId = VmId::new(3, 0);
const SLOT: SlotId = SlotId(5);
const BASE: u64 = 1024;

/// Does what it is asked, and writes it down.
#[derive(Debug, Default)]
struct Fake {
    log: std::vec::Vec<String>,
    there: BTreeSet<(u16, u64)>,
    pinned: BTreeSet<u64>,
    /// Of this call, by its name, fail the one of this number.
    fail: Option<(&'static str, u32)>,
    stuck: u64,
}

impl Fake {
    fn note(&mut self, name: &'static str, what: String) -> Result<(), Status> {
        self.log.push(format!("{name} {what}"));
        match &mut self.fail {
            Some((of, left)) if *of == name => {
                *left -= 1;
                if *left == 0 {
                    self.fail = None;
                    return Err(Status::Died);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn count(&self, name: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(name)).count()
    }
}

impl Machine for Fake {
    fn begin(&mut self, _: VmId, start: Gfn, end: Gfn) -> Result<(), Status> {
        self.note("begin", format!("{}..{}", start.0, end.0))
    }
    fn unmap(&mut self, _: VmId, gfn: Gfn, pages: u64, private: bool) {
        let _ = self.note("unmap", format!("{} {pages} {}", gfn.0, if private { "private" } else { "shared" }));
    }
    fn flush(&mut self, _: VmId) {
        let _ = self.note("flush", String::new());
    }
    fn end(&mut self, _: VmId) {
        let _ = self.note("end", String::new());
    }
    fn allocate(&mut self, at: GmemAddress) -> Result<(), Status> {
        self.note("allocate", at.page.to_string())?;
        assert!(self.there.insert((at.gmem.0, at.page)), "twice");
        Ok(())
    }
    fn clear(&mut self, at: GmemAddress) -> Result<(), Status> {
        self.note("clear", at.page.to_string())
    }
    fn prepare(&mut self, _: VmId, _: Gfn, at: GmemAddress) -> Result<(), Status> {
        self.note("prepare", at.page.to_string())
    }
    fn pin(&mut self, source: u64) -> Result<(), Status> {
        self.note("pin", format!("{source:x}"))?;
        assert!(self.pinned.insert(source));
        Ok(())
    }
    fn unpin(&mut self, source: u64) {
        assert!(self.pinned.remove(&source));
    }
    fn fill(&mut self, _: VmId, _: Gfn, at: GmemAddress, source: u64) -> Result<(), Status> {
        assert!(self.pinned.contains(&source) && self.there.contains(&(at.gmem.0, at.page)));
        self.note("fill", at.page.to_string())
    }
    fn free(&mut self, at: GmemAddress, pages: u64) -> u64 {
        let _ = self.note("free", format!("{} {pages}", at.page));
        (at.page..at.page + pages).for_each(|page| assert!(self.there.remove(&(at.gmem.0, page))));
        core::mem::take(&mut self.stuck)
    }
}

/// A gmem of 2,048 pages, of which pages 512 to 1,535 are shown at guest frame 1,024, all of them private.
fn made() -> (Box<Small>, Fake, GmemId) {
    let (mut gmems, mut fake) = (Box::new(Small::new()), Fake::default());
    let id = gmems.create(VM, 0, 2048 << 12).unwrap();
    gmems.bind(VM, SLOT, Gfn(BASE), 1024, id, 512 << 12).unwrap();
    for at in [BASE, BASE + 512] {
        gmems.convert(VM, Gfn(at), 512, true, &mut fake).unwrap();
    }
    fake.log.clear();
    (gmems, fake, id)
}

fn fault(gmems: &mut Small, fake: &mut Fake, gfn: u64) -> Result<Fault, Error> {
    gmems.fault(VM, SLOT, Gfn(gfn), fake)
}

#[test]
fn making_one() {
    let mut gmems = Small::new();
    assert_eq!(gmems.create(VM, 1, 4096), Err(Error::BadFlags));
    for bytes in [0, 1, 4095, 4097, u64::MAX, (END + 1) << 12] {
        assert_eq!(gmems.create(VM, 0, bytes), Err(Error::BadSize), "{bytes}");
    }
    assert_eq!(Error::BadFlags.status(), Status::Invalid);
    assert_eq!(Error::BadSize.status(), Status::Invalid);
    assert!(gmems.create(VM, 0, END << 12).is_ok());
    for _ in 1..GMEMS {
        gmems.create(VM, 0, 4096).unwrap();
    }
    assert_eq!(gmems.create(VM, 0, 4096), Err(Error::Full));
}

#[test]
fn binding_it() {
    let (mut gmems, _, id) = made();
    let mut bind = |vm, slot, pages, offset| gmems.bind(vm, SlotId(slot), Gfn(9000), pages, id, offset);
    assert_eq!(bind(OTHER, 6, 1, 0), Err(Error::OtherVm));
    assert_eq!(bind(VM, 6, 1, 1), Err(Error::Unaligned));
    assert_eq!(bind(VM, 6, 0, 0), Err(Error::BadSize));
    for (pages, offset) in [(2049, 0), (1, 2048 << 12), (u64::MAX, 0), (2, 2047 << 12)] {
        assert!(matches!(bind(VM, 6, pages, offset), Err(Error::PastEnd | Error::BadSize)), "{pages} {offset}");
    }
    for (pages, offset) in [(1, 512), (1, 1535), (513, 0), (2048, 0), (600, 1000)] {
        assert_eq!(bind(VM, 6, pages, offset << 12), Err(Error::Bound), "{pages} {offset}");
    }
    assert_eq!(bind(VM, SLOT.0, 1, 0), Err(Error::Bound), "the slot has pages");
    for error in [Error::OtherVm, Error::Unaligned, Error::PastEnd, Error::Bound] {
        assert_eq!(error.status(), Status::Invalid);
    }
    assert_eq!(bind(VM, 6, 512, 0), Ok(()));
    assert_eq!(bind(VM, 7, 512, 1536 << 12), Ok(()));
    assert_eq!(gmems.unbind(VM, SlotId(8)), Err(Error::NotBound));
    assert_eq!(gmems.unbind(VM, SlotId(6)), Ok(()));
    assert_eq!(gmems.bind(VM, SlotId(9), Gfn(0), 512, id, 0), Ok(()), "they are free again");
    assert_eq!(gmems.bind(VM, SlotId(10), Gfn(0), 1, GmemId(9), 0), Err(Error::NoGmem));
}

#[test]
fn a_page_comes_at_its_first_fault_is_cleared_once_and_prepared_each_time() {
    let (mut gmems, mut fake, id) = made();
    let found = Fault { at: GmemAddress { gmem: id, page: 515 }, pages: 1 };
    assert_eq!(fault(&mut gmems, &mut fake, BASE + 3), Ok(found));
    assert_eq!(fault(&mut gmems, &mut fake, BASE + 3), Ok(found));
    assert_eq!(fake.log, ["allocate 515", "clear 515", "prepare 515", "prepare 515"]);
    assert_eq!(fault(&mut gmems, &mut fake, BASE - 1), Err(Error::PastEnd));
    assert_eq!(fault(&mut gmems, &mut fake, BASE + 1024), Err(Error::PastEnd));
    assert_eq!(gmems.fault(VM, SlotId(1), Gfn(BASE), &mut fake), Err(Error::NotBound));
    assert_eq!(gmems.fault(OTHER, SLOT, Gfn(BASE), &mut fake), Err(Error::NotBound));
}

#[test]
fn a_fault_that_fails_goes_on_where_it_stopped() {
    let (mut gmems, mut fake, _) = made();
    for call in ["allocate", "clear", "prepare"] {
        fake.fail = Some((call, 1));
        assert_eq!(fault(&mut gmems, &mut fake, BASE), Err(Error::Machine(Status::Died)));
    }
    assert!(fault(&mut gmems, &mut fake, BASE).is_ok());
    assert_eq!((fake.count("allocate"), fake.count("clear"), fake.count("prepare")), (2, 2, 2));
}

#[test]
fn a_shared_guest_frame_has_no_private_page() {
    let (mut gmems, mut fake, id) = made();
    gmems.convert(VM, Gfn(BASE + 7), 1, false, &mut fake).unwrap();
    assert_eq!(fake.log, ["begin 1031..1032", "unmap 1031 1 private", "flush ", "end "]);
    assert_eq!(fault(&mut gmems, &mut fake, BASE + 7), Err(Error::NotPrivate));
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE + 7), 1, 0, &mut fake), Err(Error::NotPrivate));
    assert!(!gmems.is_allocated(id, 519));
    fake.log.clear();
    gmems.convert(VM, Gfn(BASE + 7), 1, true, &mut fake).unwrap();
    assert_eq!(fake.log, ["begin 1031..1032", "unmap 1031 1 shared", "flush ", "end "]);
    assert!(fault(&mut gmems, &mut fake, BASE + 7).is_ok());
}

#[test]
fn a_conversion_happens_as_a_whole_or_not_at_all() {
    let (mut gmems, mut fake) = (Box::new(Gmems::<1, 1>::new()), Fake::default());
    assert_eq!(gmems.convert(VM, Gfn(500), 100, true, &mut fake), Err(Error::Full));
    assert!(fake.log.is_empty() && !gmems.is_private(VM, Gfn(500)));
    fake.fail = Some(("begin", 1));
    assert_eq!(gmems.convert(VM, Gfn(0), 100, true, &mut fake), Err(Error::Machine(Status::Died)));
    assert!(!gmems.is_private(VM, Gfn(0)));
    assert_eq!(gmems.convert(OTHER, Gfn(0), 100, true, &mut fake), Ok(()), "what was reserved is free again");
    for (gfn, pages) in [(0, 0), (0, 513), (END - 1, 2), (u64::MAX, 1)] {
        assert_eq!(gmems.convert(OTHER, Gfn(gfn), pages, true, &mut fake), Err(Error::BadSize));
    }
    gmems.vm_gone(OTHER);
    assert!(!gmems.is_private(OTHER, Gfn(0)));
    assert_eq!(gmems.convert(VM, Gfn(0), 100, true, &mut fake), Ok(()));
}

#[test]
fn two_mebibytes_are_one_page_where_all_of_them_are_private_and_there() {
    let (mut gmems, mut fake, _) = made();
    for gfn in BASE..BASE + 511 {
        assert_eq!(fault(&mut gmems, &mut fake, gfn).unwrap().pages, 1);
    }
    assert_eq!(fault(&mut gmems, &mut fake, BASE + 511).unwrap().pages, 512);
    gmems.convert(VM, Gfn(BASE + 9), 1, false, &mut fake).unwrap();
    assert_eq!(fault(&mut gmems, &mut fake, BASE).unwrap().pages, 1, "one is shared");
    gmems.convert(VM, Gfn(BASE + 9), 1, true, &mut fake).unwrap();
    assert_eq!(fault(&mut gmems, &mut fake, BASE).unwrap().pages, 512);
}

#[test]
fn populating() {
    let (mut gmems, mut fake, _) = made();
    for source in [1, 4095, 0x1008] {
        assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE), 1, source, &mut fake), Err(Error::Unaligned));
    }
    assert!(fake.log.is_empty(), "nothing was pinned");
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE), 0, 0, &mut fake), Err(Error::BadSize));
    assert_eq!(gmems.populate(VM, SLOT, Gfn(u64::MAX), 1, 0, &mut fake), Err(Error::BadSize));
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE), 2, 0x8000, &mut fake), Ok(2));
    let steps = ["pin 8000", "allocate 512", "fill 512", "pin 9000", "allocate 513", "fill 513"];
    assert_eq!(fake.log, steps, "pinned before the gmem is looked at");
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE), 1, 0x8000, &mut fake), Err(Error::Exists));
    assert_eq!(Error::Exists.status(), Status::Exists);
    assert!(fake.pinned.is_empty());
    fake.log.clear();
    assert!(fault(&mut gmems, &mut fake, BASE).is_ok());
    assert_eq!(fake.log, ["prepare 512"], "its contents aren't cleared");
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE + 2), 900, 0, &mut fake), Ok(512), "bounded");
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE + 1020), 9, 0, &mut fake), Ok(4), "the slot ends");
    assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE + 1024), 9, 0, &mut fake), Err(Error::PastEnd));
}

#[test]
fn populating_that_fails_at_page_2_of_3() {
    for call in ["pin", "allocate", "fill"] {
        let (mut gmems, mut fake, _) = made();
        fake.fail = Some((call, 2));
        assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE), 3, 0, &mut fake), Ok(1), "{call}");
        assert!(fake.pinned.is_empty());
        assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE), 1, 0, &mut fake), Err(Error::Exists));
        // What failed has no contents: it is populated, or cleared.
        assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE + 1), 1, 0, &mut fake), Ok(1), "{call}");
        fake.fail = Some((call, 1));
        assert_eq!(gmems.populate(VM, SLOT, Gfn(BASE + 2), 1, 0, &mut fake), Err(Error::Machine(Status::Died)));
        assert!(fault(&mut gmems, &mut fake, BASE + 2).is_ok());
        assert_eq!(fake.log.last().map(String::as_str), Some("prepare 514"));
        assert_eq!(fake.count("clear 514"), 1, "{call}");
    }
}

#[test]
fn holes() {
    let (mut gmems, mut fake, id) = made();
    for gfn in [0, 1, 2, 5, 1000] {
        fault(&mut gmems, &mut fake, BASE + gfn).unwrap();
    }
    fake.log.clear();
    for (offset, length, error) in [(1, 4096, Error::Unaligned), (0, 4097, Error::Unaligned), (0, 0, Error::BadSize)] {
        assert_eq!(gmems.punch(id, offset, length, &mut fake), Err(error));
    }
    assert_eq!(gmems.punch(GmemId(9), 0, 4096, &mut fake), Err(Error::NoGmem));
    assert_eq!(gmems.punch(id, 0, 512 << 12, &mut fake), Ok(None));
    assert!(fake.log.is_empty(), "nothing is there");
    fake.fail = Some(("begin", 1));
    assert_eq!(gmems.punch(id, 0, 2048 << 12, &mut fake), Err(Error::Machine(Status::Died)));
    assert_eq!(fake.there.len(), 5);
    fake.log.clear();
    assert_eq!(gmems.punch(id, 0, u64::MAX - 4095, &mut fake), Ok(Some(1512 << 12)), "bounded");
    assert_eq!(fake.log, ["begin 1024..1536", "unmap 1024 512 private", "flush ", "end ", "free 512 3", "free 517 1"]);
    assert_eq!(gmems.punch(id, 1512 << 12, u64::MAX - 4095, &mut fake), Ok(None));
    assert!(fake.there.is_empty());
    fake.log.clear();
    assert!(fault(&mut gmems, &mut fake, BASE).is_ok());
    assert_eq!(fake.log, ["allocate 512", "clear 512", "prepare 512"], "it is new again");
}

#[test]
fn what_no_slot_shows_is_flushed_when_it_is_freed() {
    let (mut gmems, mut fake, id) = made();
    fault(&mut gmems, &mut fake, BASE).unwrap();
    gmems.unbind(VM, SLOT).unwrap();
    fake.log.clear();
    assert_eq!(gmems.punch(id, 0, 2048 << 12, &mut fake), Ok(None));
    assert_eq!(fake.log, ["free 512 1"], "and freeing flushes");
}

#[test]
fn what_cant_be_taken_back_is_leaked_and_counted() {
    let (mut gmems, mut fake, id) = made();
    for gfn in 0..4 {
        fault(&mut gmems, &mut fake, BASE + gfn).unwrap();
    }
    fake.stuck = 2;
    assert_eq!(gmems.punch(id, 512 << 12, 2 << 12, &mut fake), Ok(None));
    assert_eq!(gmems.leaked(), 2);
    assert_eq!(gmems.punch(id, 514 << 12, 2 << 12, &mut fake), Ok(None));
    assert_eq!(gmems.leaked(), 2);
}

#[test]
fn a_poisoned_page_is_seen_by_nobody_and_never_used_again() {
    let (mut gmems, mut fake, id) = made();
    for gfn in 0..3 {
        fault(&mut gmems, &mut fake, BASE + gfn).unwrap();
    }
    fake.log.clear();
    assert_eq!(gmems.poison(id, 2048, &mut fake), Err(Error::PastEnd));
    assert_eq!(gmems.poison(id, 513, &mut fake), Ok(()));
    assert_eq!(fake.log, ["begin 1025..1026", "unmap 1025 1 private", "flush ", "end "]);
    assert_eq!(fault(&mut gmems, &mut fake, BASE + 1), Err(Error::Poisoned));
    assert_eq!(Error::Poisoned.status(), Status::Poisoned);
    assert!(fault(&mut gmems, &mut fake, BASE + 2).is_ok());
    fake.log.clear();
    assert_eq!(gmems.punch(id, 512 << 12, 3 << 12, &mut fake), Ok(None));
    assert_eq!((fake.count("free 512 1"), fake.count("free 514 1"), fake.count("free")), (1, 1, 2));
    assert_eq!(gmems.leaked(), 1);
    fake.there.clear();
    assert!(fault(&mut gmems, &mut fake, BASE + 1).is_ok(), "by other memory");
}

#[test]
fn a_binding_to_a_gmem_that_is_gone_is_stale() {
    let (mut gmems, mut fake, id) = made();
    fault(&mut gmems, &mut fake, BASE).unwrap();
    assert_eq!(gmems.destroy(id), Err(Error::Busy));
    gmems.punch(id, 0, 2048 << 12, &mut fake).unwrap();
    assert_eq!(gmems.destroy(id), Ok(()));
    assert_eq!(gmems.destroy(id), Err(Error::NoGmem));
    assert_eq!(fault(&mut gmems, &mut fake, BASE), Err(Error::Stale));
    assert_eq!(Error::Stale.status(), Status::Unbound);
    let next = gmems.create(VM, 0, 2048 << 12).unwrap();
    assert_eq!(next, id, "in the same place");
    assert_eq!(fault(&mut gmems, &mut fake, BASE), Err(Error::Stale));
    assert_eq!(gmems.bind(VM, SlotId(6), Gfn(0), 1024, next, 512 << 12), Ok(()));
    assert_eq!(gmems.unbind(VM, SLOT), Ok(()));
    assert_eq!(gmems.bind(VM, SLOT, Gfn(BASE), 1, next, 512 << 12), Err(Error::Bound), "the new one's is still there");
}

#[test]
fn without_room_nothing_is_allocated() {
    let (mut gmems, mut fake) = (Box::new(Gmems::<2, 1>::new()), Fake::default());
    let id = gmems.create(VM, 0, 4096).unwrap();
    gmems.bind(VM, SLOT, Gfn(0), 1, id, 0).unwrap();
    gmems.convert(VM, Gfn(0), 1, true, &mut fake).unwrap();
    assert_eq!(gmems.fault(VM, SLOT, Gfn(0), &mut fake), Err(Error::Full));
    assert!(fake.there.is_empty() && !gmems.is_allocated(id, 0));
    assert_eq!(Error::Full.status(), Status::Exhausted);
    assert_eq!(gmems.bits.left(), 1, "what was reserved for it is free again");
}
