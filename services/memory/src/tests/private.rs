//! Private memory by messages: every refusal, and what is left when something fails in the middle.

use caisson_proto::abi::Lease;
use caisson_proto::addr::VPage;
use caisson_proto::kernel::{Features, GuestUnmap};
use caisson_proto::memory::*;
use caisson_proto::slots::{GmemAddress, GmemId, HostAddress, Region, SlotId};

use super::slots::{ask, slot, whole};
use super::*;

/// A VM of 4,096 pages, all shown by slot 0 from page 512 of a gmem on.
fn made() -> (Box<Memory>, Fake, VmId, GmemId) {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 4096).unwrap();
    whole(&mut memory, &mut fake, &slot(vm, 0, 0, 0, 0)).unwrap();
    let gmem = ask(&mut memory, &mut fake, 5, &GmemMake { vm, flags: 0, bytes: 8192 << 12 }).unwrap().gmem;
    let with = SlotSet { flags: SlotFlags::GMEM, gmem: GmemAddress { gmem, page: 512 }, ..slot(vm, 0, 0, 4096, 0) };
    assert_eq!(ask(&mut memory, &mut fake, 5, &with), Ok(Progress { more: false }));
    (memory, fake, vm, gmem)
}

fn attribute(vm: VmId, gfn: u64, pages: u64, private: bool) -> Attribute {
    Attribute { vm, gfn: Gfn(gfn), pages, private }
}

fn touch(memory: &mut Memory, fake: &mut Fake, vm: VmId, gfn: u64, pages: u64, private: bool) -> Result<(), Status> {
    ask(memory, fake, 5, &Populate { vm, gfn: Gfn(gfn), pages, private }).map(|_| ())
}

/// Its private pages, as the kernel has them.
fn private(fake: &Fake) -> Vec<u64> {
    fake.vms[0].as_ref().unwrap().private.iter().copied().collect()
}

#[test]
fn what_is_there_anybody_may_ask() {
    let (mut memory, mut fake) = started();
    fake.features = Some(Features::SEV);
    let mut of = |number| ask(&mut memory, &mut fake, 9, &Capability { number }).unwrap().value;
    assert_eq!((of(crate::capabilities::SYNC_MMU), of(235), of(77)), (1, 0b1111, 0));
}

#[test]
fn making_and_giving_up_a_gmem() {
    let (mut memory, mut fake, vm, gmem) = made();
    for (flags, bytes) in [(1, 4096), (0, 0), (0, 4095), (0, u64::MAX)] {
        assert_eq!(ask(&mut memory, &mut fake, 5, &GmemMake { vm, flags, bytes }), Err(Status::Invalid));
    }
    assert_eq!(ask(&mut memory, &mut fake, 6, &GmemMake { vm, flags: 0, bytes: 4096 }), Err(Status::Denied));
    let other = make(&mut memory, &mut fake, 6, 512).unwrap();
    assert_eq!(ask(&mut memory, &mut fake, 6, &GmemDrop { vm: other, gmem }), Err(Status::NotFound), "another VM's");
    assert_eq!(ask(&mut memory, &mut fake, 5, &GmemDrop { vm, gmem }), Err(Status::Busy), "a slot shows it");
    whole(&mut memory, &mut fake, &slot(vm, 0, 0, 0, 0)).unwrap();
    assert!(ask(&mut memory, &mut fake, 5, &GmemDrop { vm, gmem }).is_ok());
    assert_eq!(ask(&mut memory, &mut fake, 5, &GmemDrop { vm, gmem }), Err(Status::NotFound));
}

#[test]
fn a_slot_that_cant_have_its_gmem_isnt_made() {
    let (mut memory, mut fake, vm, gmem) = made();
    let with = |id, gfn, pages, gmem, page| SlotSet {
        flags: SlotFlags::GMEM,
        gmem: GmemAddress { gmem, page },
        ..slot(vm, id, gfn, pages, gfn)
    };
    let cases = [
        (with(1, 4096, 8, GmemId(9), 0), Status::NotFound),
        (with(1, 4096, 8, gmem, 8190), Status::Invalid),
        (with(1, 4096, 8, gmem, 512), Status::Invalid),
        (with(1, 4090, 8, gmem, 0), Status::Exists),
        (with(0, 0, 4095, gmem, 512), Status::Invalid),
        (
            SlotSet { flags: SlotFlags::empty(), gmem: GmemAddress::default(), ..with(0, 8192, 4096, gmem, 0) },
            Status::Invalid,
        ),
    ];
    for (request, status) in cases {
        assert_eq!(ask(&mut memory, &mut fake, 5, &request), Err(status), "{request:?}");
    }
    assert_eq!(ask(&mut memory, &mut fake, 5, &SlotInfo { vm, slot: SlotId(1) }), Err(Status::NotFound));
    assert_eq!(ask(&mut memory, &mut fake, 5, &with(1, 4096, 8, gmem, 0)), Ok(Progress { more: false }));
}

#[test]
fn what_may_become_private() {
    let (mut memory, mut fake, vm, _) = made();
    let range = |gfn, pages| attribute(vm, gfn, pages, true);
    for (gfn, pages) in [(0, 0), (0, 513), (crate::REGION_PAGES, 1), ((1 << 40) - 1, 2)] {
        assert_eq!(ask(&mut memory, &mut fake, 5, &range(gfn, pages)), Err(Status::Range), "{gfn} {pages}");
    }
    assert_eq!(ask(&mut memory, &mut fake, 5, &range(4095, 2)), Err(Status::NotFound), "no slot shows the second");
    assert_eq!(ask(&mut memory, &mut fake, 6, &range(0, 1)), Err(Status::Denied));
    let plain = make(&mut memory, &mut fake, 6, 512).unwrap();
    while ask(&mut memory, &mut fake, 6, &slot(plain, 0, 0, 0, 0)).unwrap().more {}
    ask(&mut memory, &mut fake, 6, &slot(plain, 0, 0, 4096, 0)).unwrap();
    assert_eq!(ask(&mut memory, &mut fake, 6, &attribute(plain, 0, 1, true)), Err(Status::NotFound), "it has no gmem");
    assert!(fake.turned.is_empty());
}

#[test]
fn pages_turn_where_they_lie() {
    let (mut memory, mut fake, vm, _) = made();
    touch(&mut memory, &mut fake, vm, 0, 8, false).unwrap();
    let frames = fake.vms[0].as_ref().unwrap().map.clone();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 4, 100, true)).unwrap();
    assert_eq!(fake.turned, [(4, 4, true)], "what isn't there needn't");
    assert_eq!(private(&fake), [4, 5, 6, 7]);
    ask(&mut memory, &mut fake, 5, &attribute(vm, 4, 100, true)).unwrap();
    assert_eq!(fake.turned.len(), 1, "it is so already");
    ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 6, false)).unwrap();
    assert_eq!(fake.turned[1..], [(4, 2, false)]);
    assert_eq!(fake.vms[0].as_ref().unwrap().map, frames, "in the same frames");
}

#[test]
fn a_page_comes_as_the_guest_reaches_for_it_or_not_at_all() {
    let (mut memory, mut fake, vm, _) = made();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 512, 512, true)).unwrap();
    assert_eq!(touch(&mut memory, &mut fake, vm, 512, 1, false), Err(Status::State));
    assert_eq!(touch(&mut memory, &mut fake, vm, 511, 1, true), Err(Status::State));
    assert_eq!(touch(&mut memory, &mut fake, vm, 511, 2, true), Err(Status::State), "one of them is shared");
    assert_eq!(fake.mapped(0), 0);
    touch(&mut memory, &mut fake, vm, 515, 1, true).unwrap();
    touch(&mut memory, &mut fake, vm, 515, 1, true).unwrap();
    assert_eq!((private(&fake), fake.turned.len()), (vec![515], 1), "prepared once, harmless again");
    touch(&mut memory, &mut fake, vm, 512, 512, true).unwrap();
    assert_eq!(private(&fake).len(), 512);
    let plain = make(&mut memory, &mut fake, 6, 512).unwrap();
    let request = Populate { vm: plain, gfn: Gfn(0), pages: 1, private: true };
    assert_eq!(ask(&mut memory, &mut fake, 6, &request), Err(Status::State), "its memory is all shared");
}

#[test]
fn what_stops_half_way_is_gone_on_with() {
    let (mut memory, mut fake, vm, _) = made();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 8, true)).unwrap();
    fake.turns_left = Some(0);
    assert_eq!(touch(&mut memory, &mut fake, vm, 0, 8, true), Err(Status::Busy));
    assert!(private(&fake).is_empty());
    touch(&mut memory, &mut fake, vm, 0, 8, true).unwrap();
    assert_eq!(private(&fake).len(), 8);
    // A conversion of two runs whose second is refused.
    for gfn in [20, 22] {
        touch(&mut memory, &mut fake, vm, gfn, 1, false).unwrap();
    }
    fake.turns_left = Some(1);
    assert_eq!(ask(&mut memory, &mut fake, 5, &attribute(vm, 20, 3, true)), Err(Status::Busy));
    assert_eq!(touch(&mut memory, &mut fake, vm, 20, 1, true), Ok(()), "turned");
    assert_eq!(touch(&mut memory, &mut fake, vm, 22, 1, false), Ok(()), "as it was");
    ask(&mut memory, &mut fake, 5, &attribute(vm, 20, 3, true)).unwrap();
    assert_eq!(touch(&mut memory, &mut fake, vm, 22, 1, true), Ok(()));
}

#[test]
fn without_room_to_note_it_nothing_turns() {
    let (mut memory, mut fake, vm, _) = made();
    let mut last = Ok(());
    let mut at = 0;
    // A piece of a bitmap each.
    let wide = make(&mut memory, &mut fake, 6, 512).unwrap();
    while last.is_ok() && at < 1000 {
        last = ask(&mut memory, &mut fake, 6, &attribute(wide, at * 512, 1, true)).map(|_| ());
        at += 1;
    }
    assert_eq!(last, Err(Status::Exhausted));
    touch(&mut memory, &mut fake, vm, 0, 1, false).unwrap();
    assert_eq!(ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 1, true)), Err(Status::Exhausted));
    assert!(fake.turned.is_empty());
    assert!(ask(&mut memory, &mut fake, 6, &attribute(wide, 0, 1, false)).is_ok());
    assert!(ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 1, true)).is_ok());
}

#[test]
fn a_discard_leaves_what_is_private_also_where_memory_was_started_anew() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 4096).unwrap();
    touch(&mut memory, &mut fake, vm, 0, 4, false).unwrap();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 1, 2, true)).unwrap();
    *memory = Memory::new();
    memory.start(2, &mut fake);
    let start = HostAddress { region: Region(vm.index() as u16), page: 0 };
    whole(&mut memory, &mut fake, &Discard { vm, start, pages: 4 }).unwrap();
    assert_eq!(fake.vms[0].as_ref().unwrap().map.keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_discard_takes_what_is_shared_and_a_hole_what_is_private() {
    let (mut memory, mut fake, vm, gmem) = made();
    touch(&mut memory, &mut fake, vm, 0, 16, false).unwrap();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 4, 4, true)).unwrap();
    let start = HostAddress { region: Region(vm.index() as u16), page: 0 };
    fake.shootdowns = 0;
    whole(&mut memory, &mut fake, &Discard { vm, start, pages: 10 }).unwrap();
    let left: Vec<u64> = fake.vms[0].as_ref().unwrap().map.keys().copied().collect();
    assert_eq!((left, fake.shootdowns), (vec![4, 5, 6, 7, 10, 11, 12, 13, 14, 15], 1));
    let punch = |page, pages| Punch { vm, at: GmemAddress { gmem, page }, pages };
    assert_eq!(ask(&mut memory, &mut fake, 5, &punch(512, 0)), Err(Status::Invalid));
    assert_eq!(ask(&mut memory, &mut fake, 5, &punch((1 << 40) - 1, u64::MAX)), Err(Status::Invalid));
    assert_eq!(ask(&mut memory, &mut fake, 6, &punch(512, 1)), Err(Status::Denied));
    let nothing = Punch { vm, at: GmemAddress { gmem: GmemId(9), page: 0 }, pages: 1 };
    assert_eq!(ask(&mut memory, &mut fake, 5, &nothing), Err(Status::NotFound));
    assert_eq!(ask(&mut memory, &mut fake, 5, &punch(0, 512)), Ok(Punched { pages: 512 }), "no slot shows that");
    fake.shootdowns = 0;
    let mut at = 512;
    while at < 512 + 32 {
        at += ask(&mut memory, &mut fake, 5, &punch(at, 512 + 32 - at)).unwrap().pages;
    }
    let left: Vec<u64> = fake.vms[0].as_ref().unwrap().map.keys().copied().collect();
    assert_eq!((left, fake.shootdowns), (vec![10, 11, 12, 13, 14, 15], 1));
    // They are private still, and come anew.
    assert_eq!(touch(&mut memory, &mut fake, vm, 4, 4, true), Ok(()));
}

#[test]
fn a_hole_of_any_length_takes_bounded_calls() {
    let (mut memory, mut fake, vm, gmem) = made();
    for gfn in (0..4096).step_by(512) {
        ask(&mut memory, &mut fake, 5, &attribute(vm, gfn, 512, true)).unwrap();
        touch(&mut memory, &mut fake, vm, gfn, 512, true).unwrap();
    }
    let (mut at, mut calls, end) = (0, 0, 1 << 30);
    while at < end {
        let (before, operations) = (fake.mapped(0), fake.operations);
        let done = ask(&mut memory, &mut fake, 5, &Punch { vm, at: GmemAddress { gmem, page: at }, pages: end - at });
        at += done.unwrap().pages;
        assert!(before - fake.mapped(0) <= 512 && fake.operations - operations < 200);
        calls += 1;
    }
    assert_eq!((fake.mapped(0), at), (0, end));
    assert!((8..20).contains(&calls), "{calls}");
}

#[test]
fn a_broken_page_is_seen_by_nobody_and_never_used_again() {
    let (mut memory, mut fake, vm, gmem) = made();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 8, true)).unwrap();
    touch(&mut memory, &mut fake, vm, 0, 8, true).unwrap();
    let poison = |gfn| Poison { vm, gfn: Gfn(gfn) };
    assert_eq!(ask(&mut memory, &mut fake, 5, &poison(5000)), Err(Status::NotFound));
    assert_eq!(ask(&mut memory, &mut fake, 6, &poison(3)), Err(Status::Denied));
    ask(&mut memory, &mut fake, 5, &poison(3)).unwrap();
    assert_eq!(fake.count(|state| state == State::Leaked), 1);
    assert_eq!(touch(&mut memory, &mut fake, vm, 3, 1, true), Err(Status::Poisoned));
    assert_eq!(touch(&mut memory, &mut fake, vm, 0, 8, true), Err(Status::Poisoned));
    assert_eq!(touch(&mut memory, &mut fake, vm, 4, 1, true), Ok(()));
    ask(&mut memory, &mut fake, 5, &Punch { vm, at: GmemAddress { gmem, page: 512 }, pages: 8 }).unwrap();
    run(&mut memory, &mut fake);
    assert_eq!(touch(&mut memory, &mut fake, vm, 0, 8, true), Ok(()), "by other memory");
    assert_eq!(fake.count(|state| state == State::Leaked), 1);
}

fn filled(memory: &mut Memory, fake: &mut Fake, vm: VmId, gfn: u64, pages: u64, lent: u64) -> Result<u64, Status> {
    let lease = (lent > 0).then_some(Lease { page: VPage(700), pages: lent, write: false });
    match memory.handle(vmm(5), &Fill { vm, gfn: Gfn(gfn), pages }.encode(), lease, fake) {
        (Status::Ok, words) => Ok(Filled::decode(&words).unwrap().pages),
        (status, _) => Err(status),
    }
}

#[test]
fn contents_come_by_lent_pages_once() {
    let (mut memory, mut fake, vm, _) = made();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 512, true)).unwrap();
    assert_eq!(filled(&mut memory, &mut fake, vm, 0, 1, 0), Err(Status::BadLease), "nothing was lent");
    assert_eq!(filled(&mut memory, &mut fake, vm, 0, 3, 2), Err(Status::BadLease), "too little");
    assert_eq!(filled(&mut memory, &mut fake, vm, 0, 0, 2), Err(Status::BadLease), "nothing to do");
    assert_eq!(filled(&mut memory, &mut fake, vm, 600, 1, 1), Err(Status::State), "it is shared");
    assert_eq!(filled(&mut memory, &mut fake, vm, 9000, 1, 1), Err(Status::NotFound));
    assert_eq!(filled(&mut memory, &mut fake, vm, 0, 3, 3), Ok(3));
    assert_eq!((fake.lent.clone(), private(&fake)), (vec![700, 701, 702], vec![0, 1, 2]));
    assert_eq!(filled(&mut memory, &mut fake, vm, 2, 2, 2), Err(Status::Exists));
    assert_eq!(filled(&mut memory, &mut fake, vm, 511, 2, 2), Ok(1), "the second is shared");
}

#[test]
fn filling_that_fails_at_page_2_of_3() {
    let (mut memory, mut fake, vm, _) = made();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 512, true)).unwrap();
    // The source can't be read.
    fake.unreadable = Some(701);
    assert_eq!(filled(&mut memory, &mut fake, vm, 0, 3, 3), Ok(1));
    assert_eq!(filled(&mut memory, &mut fake, vm, 0, 1, 1), Err(Status::Exists));
    fake.unreadable = Some(700);
    assert_eq!(filled(&mut memory, &mut fake, vm, 1, 1, 1), Err(Status::BadLease), "none was filled");
    fake.unreadable = None;
    // The page can't become the guest's: its contents don't count.
    fake.turns_left = Some(0);
    assert_eq!(filled(&mut memory, &mut fake, vm, 1, 2, 2), Err(Status::Busy));
    assert_eq!(private(&fake), [0]);
    assert_eq!(fake.mapped(0), 1);
    run(&mut memory, &mut fake);
    assert_eq!(filled(&mut memory, &mut fake, vm, 1, 2, 2), Ok(2));
    assert_eq!(private(&fake), [0, 1, 2]);
}

#[test]
fn nothing_is_left_of_it_when_its_vm_dies() {
    let (mut memory, mut fake, vm, gmem) = made();
    ask(&mut memory, &mut fake, 5, &attribute(vm, 0, 512, true)).unwrap();
    touch(&mut memory, &mut fake, vm, 0, 512, true).unwrap();
    let unmap = GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 1, more: true, broken: false };
    fake.ask(&unmap).unwrap();
    die(&mut memory, &mut fake, 5);
    run(&mut memory, &mut fake);
    assert_eq!(fake.free(), FREE, "an event that was open is over, too");
    let next = make(&mut memory, &mut fake, 6, 512).unwrap();
    assert_eq!(ask(&mut memory, &mut fake, 6, &GmemMake { vm: next, flags: 0, bytes: 4096 }).unwrap().gmem, gmem);
    assert!(memory.gmems.count_private(next, &(0..1 << 40)) == 0);
}
