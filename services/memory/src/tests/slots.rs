//! Slots by messages: what is shown can be populated, what isn't is refused, and what goes is given back in bounded calls.

use caisson_proto::memory::{Discard, Progress, SlotFlags, SlotInfo, SlotReport, SlotSet};
use caisson_proto::slots::{GmemAddress, HostAddress, Region, SlotId};

use super::*;

pub fn slot(vm: VmId, id: u16, gfn: u64, pages: u64, page: u64) -> SlotSet {
    SlotSet {
        vm,
        slot: SlotId(id),
        flags: SlotFlags::empty(),
        gfn: Gfn(gfn),
        pages,
        host: HostAddress { region: Region(vm.index() as u16), page },
        gmem: GmemAddress::default(),
    }
}

pub fn ask<R: Request>(memory: &mut Memory, fake: &mut Fake, slot: u16, request: &R) -> Result<R::Reply, Status> {
    let (status, words) = memory.handle(vmm(slot), &request.encode(), None, fake);
    if status == Status::Ok { Ok(R::Reply::decode(&words).unwrap()) } else { Err(status) }
}

/// Asks until there is no more: how often.
pub fn whole<R: Request<Reply = Progress>>(memory: &mut Memory, fake: &mut Fake, request: &R) -> Result<u32, Status> {
    for calls in 1..1000 {
        let before = fake.mapped(0);
        let more = ask(memory, fake, 5, request)?.more;
        assert!(before - fake.mapped(0) <= 512, "bounded");
        if !more {
            return Ok(calls);
        }
    }
    panic!("it never ends");
}

/// A VM whose memory is divided: 2,048 pages, and the same number further on, shown 2,048 pages apart.
fn divided() -> (Box<Memory>, Fake, VmId) {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 4096).unwrap();
    whole(&mut memory, &mut fake, &slot(vm, 0, 0, 0, 0)).unwrap();
    for request in [slot(vm, 1, 0, 2048, 0), slot(vm, 2, 4096, 2048, 2048)] {
        assert_eq!(ask(&mut memory, &mut fake, 5, &request), Ok(Progress { more: false }));
    }
    (memory, fake, vm)
}

fn fill(memory: &mut Memory, fake: &mut Fake, vm: VmId) {
    for chunk in (0..4).chain(8..12) {
        assert_eq!(populate(memory, fake, 5, vm, chunk * 512, 512), Status::Ok);
    }
}

#[test]
fn nothing_is_shown_past_the_window() {
    let (mut memory, mut fake, vm) = divided();
    for (gfn, pages) in [(crate::REGION_PAGES, 1), (crate::REGION_PAGES - 1, 2), ((1 << 40) - 1, 1)] {
        assert_eq!(ask(&mut memory, &mut fake, 5, &slot(vm, 3, gfn, pages, 0)), Err(Status::Invalid), "{gfn:#x}");
        assert_eq!(ask(&mut memory, &mut fake, 5, &slot(vm, 1, gfn, pages, 0)), Err(Status::Invalid), "moved there");
    }
    assert_eq!(
        ask(&mut memory, &mut fake, 5, &slot(vm, 3, crate::REGION_PAGES - 1, 1, 0)),
        Ok(Progress { more: false })
    );
}

#[test]
fn a_vm_is_made_with_one_slot_that_shows_all_of_its_region() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 512).unwrap();
    let report = ask(&mut memory, &mut fake, 5, &SlotInfo { vm, slot: SlotId(0) }).unwrap();
    let SlotReport { slot: id, gfn, pages, host, valid, .. } = report;
    assert_eq!((id, gfn, pages, host.page, valid), (SlotId(0), Gfn(0), REGION_PAGES, 0, true));
    assert_eq!(ask(&mut memory, &mut fake, 5, &SlotInfo { vm, slot: SlotId(1) }), Err(Status::NotFound));
    assert_eq!(
        ask(&mut memory, &mut fake, 5, &slot(vm, 0, 0, REGION_PAGES, 0)),
        Err(Status::Invalid),
        "it has a gmem, and stays as it is"
    );
    assert_eq!(ask(&mut memory, &mut fake, 5, &slot(vm, 1, 9, 1, 9)), Err(Status::Exists));
    assert_eq!(ask(&mut memory, &mut fake, 5, &slot(vm, 0, 0, 9, 0)), Err(Status::Invalid));
}

#[test]
fn only_what_is_shown_can_be_populated() {
    let (mut memory, mut fake, vm) = divided();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 2048, 1), Status::NotFound);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 2000, 100), Status::NotFound);
    assert_eq!(fake.mapped(0), 0, "all of it or nothing");
    ask(&mut memory, &mut fake, 5, &slot(vm, 3, 2048, 1, 50)).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 2000, 49), Status::Ok, "across two slots");
    assert_eq!(fake.mapped(0), 49);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, (1 << 40) - 512, 512), Status::NotFound);
}

#[test]
fn read_only_slots_are_mapped_read_only() {
    let (mut memory, mut fake, vm) = divided();
    let request = SlotSet { flags: SlotFlags::READ_ONLY, ..slot(vm, 3, 2048, 1, 50) };
    ask(&mut memory, &mut fake, 5, &request).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 2048, 1), Status::Ok);
    assert!(!fake.last_access.contains(Access::WRITE));
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 1), Status::Ok);
    assert!(fake.last_access.contains(Access::WRITE));
}

#[test]
fn a_slot_that_is_deleted_gives_its_pages_back_in_bounded_calls() {
    let (mut memory, mut fake, vm) = divided();
    fill(&mut memory, &mut fake, vm);
    let delete = slot(vm, 1, 0, 0, 0);
    assert_eq!(ask(&mut memory, &mut fake, 5, &delete), Ok(Progress { more: true }));
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 1), Status::Busy, "nothing is mapped there any more");
    assert_eq!(ask(&mut memory, &mut fake, 5, &slot(vm, 2, 9000, 2048, 2048)), Err(Status::Busy));
    assert!(!ask(&mut memory, &mut fake, 5, &SlotInfo { vm, slot: SlotId(1) }).unwrap().valid);
    assert!(whole(&mut memory, &mut fake, &delete).unwrap() >= 3);
    assert_eq!(fake.mapped(0), 2048);
    assert_eq!(ask(&mut memory, &mut fake, 5, &delete), Err(Status::Invalid), "it is gone");
    die(&mut memory, &mut fake, 5);
    run(&mut memory, &mut fake);
    assert_eq!(fake.free(), FREE);
}

#[test]
fn a_slot_that_is_moved_is_empty_where_it_goes() {
    let (mut memory, mut fake, vm) = divided();
    fill(&mut memory, &mut fake, vm);
    whole(&mut memory, &mut fake, &slot(vm, 2, 10_000, 2048, 2048)).unwrap();
    assert_eq!(fake.mapped(0), 2048);
    fake.pay();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 4096, 1), Status::NotFound);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 10_000, 512), Status::Ok, "it may be filled again");
}

#[test]
fn host_addresses_are_discarded_wherever_they_are_shown() {
    let (mut memory, mut fake, vm) = divided();
    fill(&mut memory, &mut fake, vm);
    let discard = |page, pages| Discard { vm, start: HostAddress { region: Region(vm.index() as u16), page }, pages };
    let operations = fake.operations;
    assert_eq!(
        ask(&mut memory, &mut fake, 5, &discard(4096, 1 << 20)),
        Ok(Progress { more: false }),
        "nothing shows that"
    );
    assert_eq!(fake.operations - operations, 1, "and nobody is asked, but for whose VM it is");
    assert_eq!(ask(&mut memory, &mut fake, 5, &discard(1024, 2048)), Ok(Progress { more: true }));
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 1500, 1), Status::Busy);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 500, 1), Status::Ok, "outside");
    assert_eq!(ask(&mut memory, &mut fake, 5, &discard(0, 2048)), Err(Status::Busy), "one at a time");
    assert_eq!(ask(&mut memory, &mut fake, 5, &slot(vm, 1, 0, 0, 0)), Err(Status::Busy), "slots stay as they are");
    assert!(whole(&mut memory, &mut fake, &discard(1024, 2048)).unwrap() >= 3);
    let map = &fake.vms[0].as_ref().unwrap().map;
    assert_eq!((map.len(), map.range(1024..5120).count()), (2048, 0));
    let other = Discard { vm, start: HostAddress { region: Region(7), page: 0 }, pages: 1 };
    assert_eq!(ask(&mut memory, &mut fake, 5, &other), Err(Status::NotFound));
}

#[test]
fn an_event_over_many_slots_has_one_shootdown() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 4096).unwrap();
    whole(&mut memory, &mut fake, &slot(vm, 0, 0, 0, 0)).unwrap();
    // 16 slots of 8 pages, far from each other in the guest, side by side in the region.
    for n in 0..16 {
        let request = slot(vm, n, u64::from(n) * 1024, 8, u64::from(n) * 8);
        ask(&mut memory, &mut fake, 5, &request).unwrap();
        assert_eq!(populate(&mut memory, &mut fake, 5, vm, u64::from(n) * 1024, 8), Status::Ok);
    }
    let start = HostAddress { region: Region(vm.index() as u16), page: 0 };
    let discard = Discard { vm, start, pages: 128 };
    (fake.shootdowns, fake.no_batch) = (0, false);
    fake.posted.clear();
    assert_eq!(ask(&mut memory, &mut fake, 5, &discard), Ok(Progress { more: false }));
    assert_eq!((fake.mapped(0), fake.shootdowns), (0, 1));
    let told: Vec<u64> = fake.posted.iter().map(|it| it.pages).collect();
    assert_eq!(told, [128], "notifier hears of all of it at once");
    // Without a batch for it alone each slot has its own.
    for n in 0..16 {
        assert_eq!(populate(&mut memory, &mut fake, 5, vm, n * 1024, 8), Status::Ok);
    }
    (fake.shootdowns, fake.no_batch) = (0, true);
    assert_eq!(ask(&mut memory, &mut fake, 5, &discard), Ok(Progress { more: false }));
    assert_eq!((fake.mapped(0), fake.shootdowns), (0, 16));
}

#[test]
fn who_dies_amid_an_event_leaves_it_to_the_next() {
    let (mut memory, mut fake, vm) = divided();
    fill(&mut memory, &mut fake, vm);
    let start = HostAddress { region: Region(vm.index() as u16), page: 1900 };
    let discard = Discard { vm, start, pages: 400 };
    // Whose VM it is, what is there, the first slot's pages.
    fake.dies_after = Some(3);
    let _ = ask(&mut memory, &mut fake, 5, &discard);
    let held = fake.vms[0].as_ref().unwrap().held;
    assert!(held.is_some());
    fake.dies_after = None;
    *memory = Memory::new();
    memory.start(2, &mut fake);
    assert_eq!(fake.vms[0].as_ref().unwrap().held, None);
    assert!(fake.posted.iter().any(|it| Some(it.batch) == held), "notifier is told");
    run(&mut memory, &mut fake);
    assert!(fake.batches.is_empty());
}

#[test]
fn only_a_vms_handler_has_its_slots() {
    let (mut memory, mut fake, vm) = divided();
    assert_eq!(ask(&mut memory, &mut fake, 6, &slot(vm, 1, 0, 0, 0)), Err(Status::Denied));
    assert_eq!(ask(&mut memory, &mut fake, 6, &SlotInfo { vm, slot: SlotId(0) }), Err(Status::Denied));
    let none = GmemAddress { gmem: caisson_proto::slots::GmemId(50), page: 0 };
    let gmem = SlotSet { flags: SlotFlags::GMEM, gmem: none, ..slot(vm, 3, 9000, 1, 9000) };
    assert_eq!(ask(&mut memory, &mut fake, 5, &gmem), Err(Status::NotFound), "there is no such gmem");
    let start = HostAddress { region: Region(vm.index() as u16), page: 0 };
    assert_eq!(ask(&mut memory, &mut fake, 6, &Discard { vm, start, pages: 1 }), Err(Status::Denied));
}

#[test]
fn after_a_restart_and_after_a_death_slots_are_what_a_vm_is_made_with() {
    let (mut memory, mut fake, vm) = divided();
    *memory = Memory::new();
    memory.start(2, &mut fake);
    let report = ask(&mut memory, &mut fake, 5, &SlotInfo { vm, slot: SlotId(0) }).unwrap();
    assert_eq!((report.slot, report.pages), (SlotId(0), REGION_PAGES));
    die(&mut memory, &mut fake, 5);
    run(&mut memory, &mut fake);
    assert!(memory.slots.is_empty());
    let next = make(&mut memory, &mut fake, 5, 512).unwrap();
    assert_eq!(ask(&mut memory, &mut fake, 5, &SlotInfo { vm: next, slot: SlotId(1) }), Err(Status::NotFound));
}
