//! Frames that wait for a write-back which notifier holds back.

use super::*;

/// Rings whatever bells are due, but nothing is written back.
fn rest(memory: &mut Memory, fake: &mut Fake) {
    while core::mem::take(&mut fake.again) || core::mem::take(&mut fake.later) {
        memory.doorbell(doorbell::TICKET, fake);
    }
}

/// Two VMs, of which one has died.
fn one_dead() -> (Box<Memory>, Fake, VmId) {
    let (mut memory, mut fake) = started();
    fake.encrypted = true;
    let (dead, alive) = (make(&mut memory, &mut fake, 5, 6144), make(&mut memory, &mut fake, 6, 4096));
    for chunk in 0..12 {
        assert_eq!(populate(&mut memory, &mut fake, 5, dead.unwrap(), chunk * 512, 512), Status::Ok);
    }
    die(&mut memory, &mut fake, 5);
    rest(&mut memory, &mut fake);
    (memory, fake, alive.unwrap())
}

#[test]
fn nobody_waits_for_frames_that_nobody_wants() {
    let (mut memory, mut fake, alive) = one_dead();
    assert_eq!((fake.settled, fake.settles), (1, 0));
    assert_eq!(populate(&mut memory, &mut fake, 6, alive, 0, 512), Status::Ok);
    assert!(fake.wanted.is_empty(), "there are enough");
}

#[test]
fn what_waits_can_be_promised_and_is_wanted_when_it_is_needed() {
    let (mut memory, mut fake, alive) = one_dead();
    let next = make(&mut memory, &mut fake, 5, 6144).unwrap();
    for chunk in 0..8 {
        let _ = populate(&mut memory, &mut fake, 6, alive, chunk * 512, 512);
    }
    assert!(!fake.wanted.is_empty(), "the reserve is used up");
    let mut chunks = 0..12;
    let refused = chunks.by_ref().find_map(|chunk| {
        let status = populate(&mut memory, &mut fake, 5, next, chunk * 512, 512);
        (status != Status::Ok).then_some((chunk, status))
    });
    let Some((chunk, Status::Busy)) = refused else { panic!("{refused:?} although frames will come") };
    fake.pay();
    memory.doorbell(doorbell::TICKET, &mut fake);
    for chunk in chunk..12 {
        assert_eq!(populate(&mut memory, &mut fake, 5, next, chunk * 512, 512), Status::Ok);
    }
}

#[test]
fn when_no_vm_is_left_everything_is_paid_before_it_is_settled() {
    let (mut memory, mut fake, _) = one_dead();
    die(&mut memory, &mut fake, 6);
    rest(&mut memory, &mut fake);
    assert_eq!(fake.settled, 1, "of the first one");
    assert!(fake.settles > 0);
    run(&mut memory, &mut fake);
    assert_eq!((fake.settled, fake.free()), (2, FREE));
    assert_eq!(memory.pool.free(), FREE);
}
