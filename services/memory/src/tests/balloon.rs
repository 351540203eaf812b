//! Memory that is given back and taken again.

use caisson_proto::memory::{FramesOf, GiveBack, NoticesOf, VmFrames};

use super::*;

fn give(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId, gfn: u64, pages: u64) -> Status {
    memory.handle(vmm(slot), &GiveBack { vm, gfn: Gfn(gfn), pages }.encode(), None, fake).0
}

/// A VM that has almost all of memory.
fn large() -> (Box<Memory>, Fake, VmId) {
    let (mut memory, mut fake) = started();
    let vm = make(&mut memory, &mut fake, 5, 10_240).unwrap();
    for chunk in 0..20 {
        assert_eq!(populate(&mut memory, &mut fake, 5, vm, chunk * 512, 512), Status::Ok);
    }
    (memory, fake, vm)
}

#[test]
fn what_is_given_back_is_another_vms_and_comes_again_when_that_is_over() {
    let (mut memory, mut fake, vm) = large();
    assert_eq!(make(&mut memory, &mut fake, 6, 3200), Err(Status::Exhausted));
    for chunk in 4..8 {
        assert_eq!(give(&mut memory, &mut fake, 5, vm, chunk * 512, 512), Status::Ok);
    }
    run(&mut memory, &mut fake);
    let other = make(&mut memory, &mut fake, 6, 3200).unwrap();
    // What the other one was promised isn't there, even while nobody uses it.
    let again = populate(&mut memory, &mut fake, 5, vm, 7 * 512, 512);
    assert_eq!(again, Status::Exhausted);
    run(&mut memory, &mut fake);
    assert_eq!(populate(&mut memory, &mut fake, 6, other, 0, 512), Status::Ok);
    die(&mut memory, &mut fake, 6);
    run(&mut memory, &mut fake);
    for chunk in 4..8 {
        assert_eq!(populate(&mut memory, &mut fake, 5, vm, chunk * 512, 512), Status::Ok);
    }
    assert_eq!(populate(&mut memory, &mut fake, 5, vm, 10_240, 1), Status::Exhausted, "more than it ever had");
    assert_eq!(make(&mut memory, &mut fake, 6, 3200), Err(Status::Exhausted), "it is promised again");
    die(&mut memory, &mut fake, 5);
    run(&mut memory, &mut fake);
    assert_eq!(fake.free(), FREE);
}

#[test]
fn what_was_not_promised_comes_as_far_as_nobody_was_promised_it() {
    let (mut memory, mut fake) = started();
    let large = promise(&mut memory, &mut fake, 5, 20_480, 1024).unwrap();
    let other = make(&mut memory, &mut fake, 6, 4096).unwrap();
    assert_eq!(promise(&mut memory, &mut fake, 7, 512, 513), Err(Status::Range));
    // More than it was promised, and more than there is.
    let mut got = 0;
    while populate(&mut memory, &mut fake, 5, large, got, 512) == Status::Ok {
        got += 512;
    }
    assert!((2048..FREE - 4096).contains(&got), "{got}");
    run(&mut memory, &mut fake);
    // What others were promised is there all the same.
    for chunk in 0..8 {
        assert_eq!(populate(&mut memory, &mut fake, 6, other, chunk * 512, 512), Status::Ok);
    }
    assert_eq!(populate(&mut memory, &mut fake, 5, large, got, 512), Status::Exhausted);
    // Until the other one gives some back.
    assert_eq!(give(&mut memory, &mut fake, 6, other, 0, 512), Status::Ok);
    assert_eq!(give(&mut memory, &mut fake, 6, other, 512, 512), Status::Ok);
    run(&mut memory, &mut fake);
    assert_eq!(populate(&mut memory, &mut fake, 5, large, got, 512), Status::Ok);
    for slot in [5, 6] {
        die(&mut memory, &mut fake, slot);
    }
    run(&mut memory, &mut fake);
    assert_eq!(fake.free(), FREE);
}

#[test]
fn giving_back_what_isnt_there_changes_nothing() {
    let (mut memory, mut fake, vm) = large();
    assert_eq!(give(&mut memory, &mut fake, 5, vm, 20_000, 512), Status::Ok);
    assert_eq!(give(&mut memory, &mut fake, 5, vm, 0, 513), Status::Range);
    assert_eq!(give(&mut memory, &mut fake, 5, vm, 0, 0), Status::Range);
    assert_eq!(give(&mut memory, &mut fake, 6, vm, 0, 512), Status::Denied);
    assert!(fake.posted.is_empty());
    die(&mut memory, &mut fake, 5);
    assert_eq!(give(&mut memory, &mut fake, 5, vm, 0, 512), Status::State);
}

fn frames(memory: &mut Memory, fake: &mut Fake, slot: u16, vm: VmId) -> Result<VmFrames, Status> {
    let (status, words) = memory.handle(vmm(slot), &FramesOf { vm }.encode(), None, fake);
    if status == Status::Ok { Ok(VmFrames::decode(&words).unwrap()) } else { Err(status) }
}

#[test]
fn a_vm_is_told_how_its_own_frames_stand() {
    let (mut memory, mut fake, vm) = large();
    let before = frames(&mut memory, &mut fake, 5, vm).unwrap();
    let all = 10_240 + overhead(10_240, 2);
    assert_eq!((before.mapped, before.mapped + before.kernel + before.promised), (10_240, all));
    assert_eq!((before.reclaimed, before.flush_requests, before.flushes, before.quarantined), (0, 0, 0, 0));
    assert_eq!(give(&mut memory, &mut fake, 5, vm, 512, 512), Status::Ok);
    // Nothing is there any more: no flush.
    assert_eq!(give(&mut memory, &mut fake, 5, vm, 512, 512), Status::Ok);
    let after = frames(&mut memory, &mut fake, 5, vm).unwrap();
    assert_eq!((after.mapped, after.reclaimed, after.flush_requests, after.flushes), (9728, 512, 2, 1));
    assert_eq!((after.quarantined, after.mapped + after.kernel + after.promised), (512, all - 512));
    fake.pay();
    assert_eq!(frames(&mut memory, &mut fake, 5, vm).unwrap().quarantined, 0);
    // Nobody else's.
    assert_eq!(frames(&mut memory, &mut fake, 6, vm), Err(Status::Denied));
    assert_eq!(frames(&mut memory, &mut fake, 5, VmId::new(3, 9)), Err(Status::NotFound));
    let notices = NoticesOf { vm }.encode();
    assert_eq!(memory.handle(vmm(6), &notices, None, &mut fake).0, Status::Denied);
    assert_eq!(memory.handle(vmm(5), &notices, None, &mut fake).0, Status::Unsupported, "there is no notifier here");
}
