//! Promises that change while a VM lives, and shortages.

use caisson_proto::memory::{GiveBack, Need, Needed, Promise, Unpromise};

use super::*;
use crate::need::{HIGH, LOW, ROUNDS};

fn more(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId, pages: u64) -> Status {
    memory.handle(vmm(slot), &Promise { vm, pages }.encode(), None, fake).0
}

fn less(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId, pages: u64) -> Status {
    memory.handle(vmm(slot), &Unpromise { vm, pages }.encode(), None, fake).0
}

fn give(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId, gfn: u64) {
    let (status, _) = memory.handle(vmm(slot), &GiveBack { vm, gfn: Gfn(gfn), pages: 512 }.encode(), None, fake);
    assert_eq!(status, Status::Ok);
}

fn needed(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId) -> Result<Needed, Status> {
    let (status, words) = memory.handle(vmm(slot), &Need { vm }.encode(), None, fake);
    if status == Status::Ok { Ok(Needed::decode(&words).unwrap()) } else { Err(status) }
}

/// The next round.
fn round(memory: &mut Memory, fake: &mut Fake) -> Vec<ServiceId> {
    fake.told.clear();
    assert!(core::mem::take(&mut fake.round), "no round was asked for");
    fake.due = true;
    memory.doorbell(doorbell::TIMER, fake);
    fake.told.clone()
}

/// Populates chunk after chunk from one on until nothing is left; the next one.
fn fill(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId, from: u64) -> u64 {
    let mut chunk = from;
    while populate(memory, fake, slot, vm, chunk * 512, 512) == Status::Ok {
        chunk += 1;
    }
    chunk
}

#[test]
fn what_is_promised_later_is_there_and_nobody_elses() {
    let (mut memory, mut fake) = started();
    let vm = promise(&mut memory, &mut fake, 5, 8192, 1024).unwrap();
    let greedy = promise(&mut memory, &mut fake, 6, 20_480, 512).unwrap();
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 2048), Status::Ok);
    fill(&mut memory, &mut fake, 6, greedy, 0);
    for chunk in 0..6 {
        assert_eq!(populate(&mut memory, &mut fake, 5, vm, chunk * 512, 512), Status::Ok, "{chunk}");
    }
    assert_ne!(populate(&mut memory, &mut fake, 5, vm, 6 * 512, 512), Status::Ok);
    run(&mut memory, &mut fake);
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 1024), Status::Exhausted, "others have it");
    // What it has not and is promised no more, others get.
    give(&mut memory, &mut fake, 5, vm, 0);
    run(&mut memory, &mut fake);
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 512), Status::Ok);
    assert_ne!(populate(&mut memory, &mut fake, 6, greedy, 19_968, 512), Status::Ok);
    run(&mut memory, &mut fake);
    assert_eq!(less(&mut memory, &mut fake, 5, vm, 512), Status::Ok);
    assert_eq!(populate(&mut memory, &mut fake, 6, greedy, 19_968, 512), Status::Ok);
}

#[test]
fn promises_keep_to_what_a_vm_may_have() {
    let (mut memory, mut fake) = started();
    let vm = promise(&mut memory, &mut fake, 5, 2048, 1024).unwrap();
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 1025), Status::Range);
    assert_eq!(more(&mut memory, &mut fake, 5, vm, u64::MAX), Status::Exhausted);
    assert_eq!(more(&mut memory, &mut fake, 6, vm, 1), Status::Denied);
    assert_eq!(less(&mut memory, &mut fake, 6, vm, 1), Status::Denied);
    let promised = |memory: &mut Memory, fake: &mut Fake| {
        memory.handle(vmm(5), &caisson_proto::memory::FramesOf { vm }.encode(), None, fake).1[3]
    };
    let before = promised(&mut memory, &mut fake);
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 1024), Status::Ok);
    assert_eq!(promised(&mut memory, &mut fake), before + 1024);
    // No more is taken back than it was promised and hasn't.
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    assert_eq!(less(&mut memory, &mut fake, 5, vm, u64::MAX), Status::Ok);
    assert_eq!(promised(&mut memory, &mut fake) + 512 + 1024, before + 512);
    // A successor knows of no promise, and grants what there is.
    let mut memory = Box::new(Memory::new());
    memory.start(2, &mut fake);
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 4096), Status::Ok);
    assert_eq!(more(&mut memory, &mut fake, 5, vm, FREE), Status::Exhausted);
    assert_eq!(less(&mut memory, &mut fake, 5, vm, 4096), Status::Ok);
}

#[test]
fn a_shortage_is_told_in_rounds_until_there_has_been_plenty() {
    let (mut memory, mut fake) = started();
    let vm = promise(&mut memory, &mut fake, 5, 20_480, 1024).unwrap();
    let other = promise(&mut memory, &mut fake, 6, 2048, 2048).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    assert!(fake.told.is_empty() && !fake.round, "it has what it was promised");
    let plenty = needed(&mut memory, &mut fake, 5, vm).unwrap();
    assert!(plenty.lacking == 0 && plenty.spare > 0 && plenty.vms == 2);
    let end = fill(&mut memory, &mut fake, 5, vm, 1);
    run(&mut memory, &mut fake);
    assert_eq!(fake.told, [vmm(5), vmm(6)], "once, at its begin");
    let short = needed(&mut memory, &mut fake, 6, other).unwrap();
    assert!(short.spare == 0 && (1..=LOW * 3 / 2).contains(&short.lacking), "{short:?}");
    assert_eq!(needed(&mut memory, &mut fake, 6, vm), Err(Status::Denied));
    assert_eq!(round(&mut memory, &mut fake), [vmm(5), vmm(6)]);
    // Somebody gives: neither short nor plenty, and nobody is told anything.
    for chunk in 0..3 {
        give(&mut memory, &mut fake, 5, vm, (end - 1 - chunk) * 512);
    }
    run(&mut memory, &mut fake);
    let between = needed(&mut memory, &mut fake, 5, vm).unwrap();
    assert_eq!((between.lacking, between.spare), (0, 0));
    assert!(round(&mut memory, &mut fake).is_empty());
    // Then there is plenty, and it ends after a while.
    for chunk in 3..14 {
        give(&mut memory, &mut fake, 5, vm, (end - 1 - chunk) * 512);
    }
    run(&mut memory, &mut fake);
    assert!(needed(&mut memory, &mut fake, 5, vm).unwrap().spare >= HIGH / 2);
    for _ in 0..ROUNDS {
        // The timer rings for dying VMs, too, and that is no round.
        (0..10).for_each(|_| memory.doorbell(doorbell::TIMER, &mut fake));
        assert_eq!(round(&mut memory, &mut fake).len(), 2);
    }
    (fake.due, fake.told) = (true, Vec::new());
    memory.doorbell(doorbell::TIMER, &mut fake);
    assert!(fake.told.is_empty(), "it is over");
    // A VM dies and leaves plenty: who gave something may have it again, and is told.
    die(&mut memory, &mut fake, 6);
    assert!(fake.told.is_empty(), "it isn't free yet");
    run(&mut memory, &mut fake);
    assert_eq!(fake.told, [vmm(5)]);
}

#[test]
fn a_death_is_told_to_nobody_who_gave_nothing() {
    let (mut memory, mut fake) = started();
    make(&mut memory, &mut fake, 5, 512).unwrap();
    let dies = make(&mut memory, &mut fake, 6, 2048).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 6, dies, 0, 512), Status::Ok);
    die(&mut memory, &mut fake, 6);
    run(&mut memory, &mut fake);
    assert!(fake.told.is_empty() && !fake.round);
}

#[test]
fn a_promise_that_is_refused_begins_a_shortage() {
    let (mut memory, mut fake) = started();
    let vm = promise(&mut memory, &mut fake, 5, 20_480, 512).unwrap();
    make(&mut memory, &mut fake, 6, FREE - 6144).unwrap();
    assert!(fake.told.is_empty());
    assert_eq!(more(&mut memory, &mut fake, 5, vm, 8192), Status::Exhausted);
    assert_eq!(fake.told, [vmm(5), vmm(6)]);
    assert!(fake.round);
}

#[test]
fn who_asks_for_more_than_it_may_have_is_not_short() {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 512).unwrap();
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 0, 512), Status::Ok);
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 512, 512), Status::Exhausted);
    assert!(fake.told.is_empty() && !fake.round);
}

#[test]
fn a_successor_tells_that_a_shortage_is_over() {
    let (mut memory, mut fake) = started();
    make(&mut memory, &mut fake, 5, 512).unwrap();
    assert!(!fake.round);
    let mut memory = Box::new(Memory::new());
    memory.start(2, &mut fake);
    assert_eq!(fake.told, [vmm(5)]);
    assert_eq!(round(&mut memory, &mut fake), [vmm(5)]);
}
