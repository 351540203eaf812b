//! memory against a kernel that enforces the rules.

mod balloon;
mod fake;
mod held;
mod need;
mod platform;
mod private;
mod slots;

use caisson_proto::addr::{CpuId, Gfn};
use caisson_proto::kernel::{Access, VmKind};
use caisson_proto::memory::{Populate, Report, VmMade, VmMake};
use proptest::prelude::*;

use super::*;
use fake::{FRAMES, Fake, KERNEL, State};

const FREE: u64 = FRAMES - (KERNEL.end - KERNEL.start);

fn vmm(slot: u16) -> ServiceId {
    ServiceId::new(slot, 0)
}

fn started() -> (Box<Memory>, Fake) {
    let (mut memory, mut fake) = (Box::new(Memory::new()), Fake::new());
    memory.start(2, &mut fake);
    (memory, fake)
}

fn make(memory: &mut Memory, fake: &mut Fake, slot: u16, pages: u64) -> Result<VmId, Status> {
    promise(memory, fake, slot, pages, pages)
}

/// A VM that may have so many pages, some of which it is sure to get.
fn promise(memory: &mut Memory, fake: &mut Fake, slot: u16, pages: u64, promised: u64) -> Result<VmId, Status> {
    let request = VmMake { kind: VmKind::Plain, vcpus: 2, pages, promised, first_cpu: CpuId(1), lowest_cpu: CpuId(0) };
    match memory.handle(vmm(slot), &request.encode(), None, fake) {
        (Status::Ok, words) => Ok(VmMade::decode(&words).unwrap().vm),
        (status, _) => Err(status),
    }
}

fn populate(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId, gfn: u64, pages: u64) -> Status {
    memory.handle(vmm(slot), &Populate { vm, gfn: Gfn(gfn), pages, private: false }.encode(), None, fake).0
}

/// Rings whatever bells are due until nothing happens any more.
fn run(memory: &mut Memory, fake: &mut Fake) {
    for _ in 0..1000 {
        let before = fake.operations;
        if core::mem::take(&mut fake.again) {
            memory.doorbell(doorbell::TICKET, fake);
        } else if core::mem::take(&mut fake.later) {
            memory.doorbell(doorbell::TIMER, fake);
        } else if fake.pay() {
            memory.doorbell(doorbell::TICKET, fake);
        } else {
            return;
        }
        assert!(fake.operations - before < 200, "one activation took {}", fake.operations - before);
    }
    panic!("it never comes to rest");
}

fn die(memory: &mut Memory, fake: &mut Fake, slot: u16) {
    fake.orphan(vmm(slot), 3);
    memory.doorbell(doorbell::VM_GONE, fake);
}

#[test]
fn a_vm_is_made_populated_and_taken_back_whole() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 2048).unwrap();
    for chunk in 0..4 {
        assert_eq!(populate(&mut memory, &mut fake, 5, vm, chunk * 512, 512), Status::Ok);
    }
    assert_eq!(fake.vms[0].as_ref().unwrap().map.len(), 2048);
    assert_eq!(fake.vms[0].as_ref().unwrap().vcpus, 2);
    die(&mut memory, &mut fake, 5);
    assert_eq!(fake.settled, 0);
    run(&mut memory, &mut fake);
    assert_eq!((fake.free(), fake.settled), (FREE, 1));
    assert_eq!(memory.pool.free(), FREE);
}

#[test]
fn populating_twice_changes_nothing() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 1024).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 100, 3), Status::Ok);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    let map = fake.vms[0].as_ref().unwrap().map.clone();
    assert_eq!(map.len(), 512);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    assert_eq!(fake.vms[0].as_ref().unwrap().map, map);
    assert_eq!(memory.pool.free(), fake.free());
}

#[test]
fn no_more_than_was_promised() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 512).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 512, 1), Status::Exhausted);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    run(&mut memory, &mut fake);
    assert_eq!(fake.vms[0].as_ref().unwrap().map.len(), 512);
    assert_eq!(memory.pool.free(), fake.free());
    // What the first VM may still take isn't promised to another.
    let rest = fake.free();
    assert_eq!(make(&mut memory, &mut fake, 6, rest), Err(Status::Exhausted));
}

#[test]
fn only_the_handler_populates_and_has_one_vm() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 512).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 6, vm, 0, 1), Status::Denied);
    assert_eq!(make(&mut memory, &mut fake, 5, 512), Err(Status::State));
    assert_eq!(populate(&mut memory, &mut fake, 5, VmId::new(0, 9), 0, 1), Status::NotFound);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 0), Status::Range);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 513), Status::Range);
    assert_eq!(memory.handle(vmm(5), &[77; 8], None, &mut fake).0, Status::Malformed);
    fake.orphan(vmm(5), 0);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 1), Status::State);
    // While there is something left of it, its handler gets no other.
    assert_eq!(make(&mut memory, &mut fake, 5, 512), Err(Status::Busy));
    memory.doorbell(doorbell::VM_GONE, &mut fake);
    run(&mut memory, &mut fake);
    assert!(make(&mut memory, &mut fake, 5, 512).is_ok());
}

#[test]
fn a_stale_sequence_is_tried_again() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 512).unwrap();
    fake.stale = 3;
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    fake.stale = 1000;
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Busy);
}

#[test]
fn a_full_ring_makes_notifier_look_itself() {
    let (mut memory, mut fake) = started();
    make(&mut memory, &mut fake, 5, 512).unwrap();
    fake.ring_full = true;
    die(&mut memory, &mut fake, 5);
    run(&mut memory, &mut fake);
    assert!(fake.settles > 0);
    assert_eq!((fake.free(), fake.settled), (FREE, 1));
}

#[test]
fn settled_comes_even_if_nobody_was_dead() {
    let (mut memory, mut fake) = started();
    memory.doorbell(doorbell::VM_GONE, &mut fake);
    run(&mut memory, &mut fake);
    assert_eq!(fake.settled, 1);
}

#[test]
fn without_a_bell_of_its_own_it_works_on() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 1024).unwrap();
    populate(&mut memory, &mut fake, 5, vm, 0, 512);
    fake.no_bell = true;
    fake.orphan(vmm(5), 0);
    memory.doorbell(doorbell::VM_GONE, &mut fake);
    fake.pay();
    memory.doorbell(doorbell::TICKET, &mut fake);
    assert_eq!((fake.free(), fake.settled), (FREE, 1));
}

#[test]
fn a_successor_finds_what_was_still_in_a_batch() {
    let (mut memory, mut fake) = started();
    make(&mut memory, &mut fake, 5, 512).unwrap();
    fake.orphan(vmm(5), 0);
    memory.doorbell(doorbell::VM_GONE, &mut fake);
    assert!(!fake.batches.is_empty());
    *memory = Memory::new();
    memory.start(2, &mut fake);
    assert_eq!(fake.settles, 1);
    run(&mut memory, &mut fake);
    assert_eq!((fake.free(), memory.pool.free()), (FREE, FREE));
}

#[derive(Clone, Debug)]
enum Step {
    Make(u16, u64),
    Populate(u16, u64, u64),
    Die(u16, u32),
    Bells,
    Pay,
    Restart,
    /// Dies after so many operations of what it is asked next.
    Dies(u64),
    Stale(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6u16, 1..4000u64).prop_map(|(slot, pages)| Step::Make(slot, pages)),
        8 => (0..6u16, 0..4000u64, 1..=512u64).prop_map(|(slot, gfn, pages)| Step::Populate(slot, gfn, pages)),
        4 => (0..6u16, 0..8u64).prop_map(|(slot, chunk)| Step::Populate(slot, chunk * 512, 512)),
        2 => (0..6u16, 0..3u32).prop_map(|(slot, stopping)| Step::Die(slot, stopping)),
        2 => Just(Step::Bells),
        2 => Just(Step::Pay),
        1 => Just(Step::Restart),
        2 => (0..40u64).prop_map(Step::Dies),
        1 => (0..4u32).prop_map(Step::Stale),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Whatever happens and whenever memory is restarted: it never offers a frame that isn't free (the fake asserts
    /// that), no VM gets more than its promise, and when all VMs are dead every frame is free and it says so.
    #[test]
    fn frames_always_add_up(steps in prop::collection::vec(step(), 0..40)) {
        let (mut memory, mut fake) = started();
        let mut promised = [0; 4];
        for step in steps {
            match step {
                Step::Make(slot, pages) => {
                    if let Ok(vm) = make(&mut memory, &mut fake, slot, pages) {
                        promised[vm.index()] = pages;
                    }
                }
                Step::Populate(slot, gfn, pages) => {
                    let of = fake.vms.iter().flatten().find(|vm| vm.handler == vmm(slot));
                    if let Some(vm) = of.map(|vm| vm.id) {
                        let status = populate(&mut memory, &mut fake, slot, vm, gfn, pages);
                        let map = &fake.vms[vm.index()].as_ref().unwrap().map;
                        if status == Status::Ok {
                            prop_assert_eq!(map.range(gfn..gfn + pages).count() as u64, pages);
                        }
                        // If memory died before it could take back what was too much, its promises died with it.
                        prop_assert!(fake.dies_after == Some(0) || map.len() as u64 <= promised[vm.index()]);
                    }
                }
                Step::Die(slot, stopping) => {
                    fake.orphan(vmm(slot), stopping);
                    memory.doorbell(doorbell::VM_GONE, &mut fake);
                }
                Step::Bells => {
                    fake.again = false;
                    fake.later = false;
                    memory.doorbell(doorbell::TICKET | doorbell::TIMER, &mut fake);
                }
                Step::Pay => {
                    if fake.pay() {
                        memory.doorbell(doorbell::TICKET, &mut fake);
                    }
                }
                Step::Restart => {
                    // Promises are lost with it: from here on only the frames bound what a living VM gets.
                    promised = [u64::MAX; 4];
                    *memory = Memory::new();
                    memory.start(2, &mut fake);
                }
                Step::Dies(operations) => fake.dies_after = Some(operations),
                Step::Stale(count) => fake.stale = count,
            }
            if fake.dies_after == Some(0) {
                fake.dies_after = None;
                promised = [u64::MAX; 4];
                *memory = Memory::new();
                memory.start(2, &mut fake);
            }
            let open = fake.count(|state| matches!(state, State::Quarantined(_)));
            prop_assert!(memory.pool.free() <= fake.free());
            prop_assert!(open == 0 || !fake.batches.is_empty());
        }
        fake.stale = 0;
        fake.dies_after = None;
        for slot in 0..6 {
            fake.orphan(vmm(slot), 1);
        }
        fake.settled = 0;
        memory.doorbell(doorbell::VM_GONE, &mut fake);
        run(&mut memory, &mut fake);
        prop_assert_eq!((fake.free(), fake.settled), (FREE, 1));
        prop_assert_eq!(memory.pool.free(), FREE);
        let (status, words) = memory.handle(vmm(0), &Report {}.encode(), None, &mut fake);
        prop_assert_eq!(status, Status::Ok);
        let report = MemoryReport::decode(&words).unwrap();
        prop_assert_eq!((report.free, report.owned, report.promised), (FREE, 0, 0));
    }
}
