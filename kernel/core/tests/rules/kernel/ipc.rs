//! Calls, replies, doorbells, leases.

use caisson_core::event::Event;
use caisson_proto::abi::{Lease, Status, Syscall};
use caisson_proto::addr::{Sender, ServiceId, VPage};
use caisson_proto::kernel::{FaultKind, ServiceState};

use super::fake::NOT_THERE;
use super::system::{At, MEMORY, NOTIFIER, OTHER_VMM, SERVICES, SUPERVISOR, System, VMM, words};

const LENT: Lease = Lease { page: VPage(0x400), pages: 2, write: true };

#[test]
fn a_call_is_delivered_and_its_reply_comes_back() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    assert_eq!(system.call(0, MEMORY, words(7)), At::User(MEMORY));
    let got = system.got(0);
    assert_eq!((got.sender, got.words, got.lease), (Sender(system.id(VMM).bits()), words(7), 0));
    assert_eq!(system.reply(0, Status::Exhausted, words(9)), At::User(VMM));
    let got = system.got(0);
    assert_eq!((got.status, got.words), (Status::Exhausted, words(9)));
    assert_eq!(system.frames[0].rip, 0x1000 + VMM as u64, "it goes on where it called");
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
    assert!(!system.kernel.service(MEMORY).turn.is_taken());
}

#[test]
fn calls_nest() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    assert_eq!(system.call(0, MEMORY, words(1)), At::User(MEMORY));
    assert_eq!(system.call(0, NOTIFIER, words(2)), At::User(NOTIFIER));
    assert_eq!(system.got(0).sender, Sender(system.id(MEMORY).bits()));
    assert_eq!(system.reply(0, Status::Ok, words(3)), At::User(MEMORY));
    assert_eq!(system.got(0).words, words(3));
    assert_eq!(system.reply(0, Status::Ok, words(4)), At::User(VMM));
    assert_eq!(system.got(0).words, words(4));
}

#[test]
fn pages_are_lent_for_one_call() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    system.call_id(0, system.id(MEMORY), LENT.to_word(), words(1));
    let seen = Lease::from_word(system.got(0).lease).unwrap().unwrap();
    assert_eq!((seen.pages, seen.write), (2, true));
    assert_eq!(seen.page, VPage(caisson_proto::layout::LEASE >> 12));
    assert_eq!(system.machine.lent.borrow().get(&MEMORY), Some(&(VMM, LENT)));
    system.reply(0, Status::Ok, [0; 8]);
    assert!(system.machine.lent.borrow().is_empty());
    assert_eq!(system.got(0).lease, 0);
}

#[test]
fn a_lease_of_what_is_not_there_reaches_nobody() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    let absent = Lease { page: NOT_THERE, ..LENT }.to_word();
    let shared = Lease { page: VPage((caisson_proto::layout::RINGS >> 12) - 1), ..LENT }.to_word();
    for bad in [absent, shared, 1, u64::MAX, LENT.to_word() | 1 << 55] {
        assert_eq!(system.call_id(0, system.id(MEMORY), bad, words(1)), At::User(VMM));
        assert_eq!(system.got(0).status, Status::BadLease);
        assert!(!system.kernel.service(MEMORY).turn.is_taken());
    }
    assert_eq!(system.call(0, MEMORY, words(1)), At::User(MEMORY));
}

#[test]
fn whoever_is_refused_is_named_ever_more_rarely() {
    let mut system = System::new(1);
    system.awake(0, NOTIFIER);
    let notifier = system.id(NOTIFIER);
    let named = |system: &System| {
        let events = std::mem::take(&mut *system.machine.events.borrow_mut());
        assert!(events.iter().all(|event| matches!(event, Event::Refused(who, ..) if *who == notifier)));
        events.len()
    };
    system.call(0, MEMORY, words(1));
    assert_eq!((system.got(0).status, named(&system)), (Status::Downhill, 1));
    system.call_id(0, ServiceId::new(60, 0), 0, words(1));
    assert_eq!((system.got(0).status, named(&system)), (Status::Denied, 1));
    assert_eq!(system.ask(0, &caisson_proto::kernel::FrameCount {}), Err(Status::Denied));
    assert_eq!(named(&system), 0);
    for _ in 3..64 {
        system.ring(0, 64, 1);
    }
    assert_eq!(named(&system), 5, "the 4th, 8th, …, 64th");
    system.reply(0, Status::Ok, [0; 8]);
    system.awake(0, VMM);
    system.call_id(0, system.id(MEMORY), 1, words(1));
    let events = system.machine.events.borrow();
    assert_eq!(events[..], [Event::Refused(system.id(VMM), 1, Status::BadLease)]);
}

#[test]
fn a_busy_service_takes_its_callers_in_order() {
    let mut system = System::new(3);
    system.awake(0, VMM);
    assert_eq!(system.call(0, MEMORY, words(1)), At::User(MEMORY));
    system.awake(1, OTHER_VMM);
    assert_eq!(system.call(1, MEMORY, words(2)), At::Idle, "its CPU runs other work");
    // The doorbell's activation queues as any caller.
    system.here(2).ring(MEMORY, 4);
    assert_eq!(system.pick(2), At::Idle);
    assert_eq!(system.reply(0, Status::Ok, words(10)), At::User(VMM));
    assert_eq!(system.machine.interrupted.borrow_mut().pop().map(|cpu| cpu.0), Some(1));
    assert_eq!(system.pick(2), At::Idle, "not before its turn");
    assert_eq!(system.pick(1), At::User(MEMORY));
    assert_eq!(system.got(1).words, words(2));
    assert_eq!(system.reply(1, Status::Ok, words(20)), At::User(OTHER_VMM));
    assert_eq!(system.got(1).words, words(20));
    assert_eq!(system.pick(2), At::User(MEMORY));
    assert_eq!((system.got(2).sender, system.got(2).words), (Sender::DOORBELL, words(4)));
}

#[test]
fn a_call_downhill_or_to_nobody_is_refused() {
    let mut system = System::new(1);
    system.awake(0, MEMORY);
    for slot in [SUPERVISOR, VMM, MEMORY] {
        assert_eq!(system.call(0, slot, words(1)), At::User(MEMORY));
        assert_eq!(system.got(0).status, Status::Downhill);
    }
    for slot in [SERVICES as u16, 63, 64, 0xfffe] {
        assert_eq!(system.call_id(0, ServiceId::new(slot, 0), 0, words(1)), At::User(MEMORY));
        assert_eq!(system.got(0).status, Status::Denied);
    }
}

#[test]
fn a_dead_generation_is_refused_with_the_new_id() {
    let mut system = System::new(1);
    let old = system.id(MEMORY);
    system.awake(0, MEMORY);
    system.exit(0, 4);
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle, "the supervisor heard of it");
    let new = system.id(MEMORY);
    assert_eq!(new, ServiceId::new(MEMORY as u16, 1));
    system.awake(0, VMM);
    for id in [old, new] {
        assert_eq!(system.call_id(0, id, 0, words(1)), At::User(VMM));
        assert_eq!(system.got(0).status, Status::Dead);
        assert_eq!(system.got(0).words, words(new.bits().into()));
    }
    system.here(0).restart(MEMORY).unwrap();
    assert_eq!(system.call_id(0, old, 0, words(1)), At::User(MEMORY), "its first message comes before others");
    assert_eq!(system.got(0).sender, Sender::START);
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(VMM));
    assert_eq!((system.got(0).status, system.got(0).words), (Status::Dead, words(new.bits().into())));
    assert_eq!(system.call_id(0, new, 0, words(1)), At::User(MEMORY));
    assert_eq!((system.got(0).sender, system.got(0).words), (Sender(system.id(VMM).bits()), words(1)));
}

#[test]
fn a_malformed_message_faults_its_sender() {
    for (rax, message) in [
        (Syscall::Call as u64 | 0xffff << 16, words(0xdead)),
        (Syscall::Call as u64 | 0xffff << 16, [5, 1, 0, 0, 0, 0, 0, 0]),
        (99, words(1)),
        (Syscall::Reply as u64 | 0xffff << 16, words(2)),
    ] {
        let mut system = System::new(1);
        system.awake(0, VMM);
        system.call(0, MEMORY, words(1));
        assert_eq!(system.syscall(0, rax, 0, message), At::User(VMM), "the caller goes on");
        assert_eq!(system.got(0).status, Status::Died);
        let epitaph = *system.kernel.service(MEMORY).epitaph.lock();
        assert_eq!((epitaph.state, epitaph.fault), (ServiceState::Faulted, FaultKind::Protocol));
        assert_eq!(epitaph.code, message[0]);
        assert_eq!(epitaph.client, u64::from(system.id(VMM).bits()));
        assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(SUPERVISOR));
        assert_eq!(system.got(0).words[0], caisson_proto::abi::doorbell::SERVICE_DIED);
    }
}

#[test]
fn an_exception_ends_the_service_and_its_lease() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    system.call_id(0, system.id(MEMORY), LENT.to_word(), words(1));
    let mut frame = system.frames[0];
    (frame.rip, frame.rsp, frame.rax) = (0x40_1234, 0x10ff_0000, 0xdead_beef);
    let next = system.here(0).exception(&mut frame, 14, 6);
    system.frames[0] = frame;
    assert_eq!(system.settle(0, next), At::User(VMM));
    assert_eq!(system.got(0).status, Status::Died);
    assert!(system.machine.lent.borrow().is_empty());
    let epitaph = *system.kernel.service(MEMORY).epitaph.lock();
    assert_eq!((epitaph.fault, epitaph.code), (FaultKind::Exception, 14 << 32 | 6));
    assert_eq!((epitaph.rip, epitaph.rsp, epitaph.address), (0x40_1234, 0x10ff_0000, 0xdead_beef));
}

#[test]
fn a_ring_never_waits_and_coalesces() {
    let mut system = System::new(2);
    system.awake(0, MEMORY);
    system.awake(1, VMM);
    assert_eq!(system.ring(1, MEMORY, 2), At::User(VMM));
    assert_eq!(system.ring(1, MEMORY, 8), At::User(VMM));
    assert_eq!(system.ring(1, 63, 1), At::User(VMM), "nobody is there");
    assert_eq!(system.ring(1, 64, 1), At::User(VMM));
    assert_eq!(system.got(1).status, Status::Denied);
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(MEMORY), "what rang meanwhile");
    assert_eq!(system.got(0).words, words(10));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
}

#[test]
fn null_does_nothing() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    assert_eq!(system.syscall(0, Syscall::Null as u64, 0, words(5)), At::User(VMM));
    assert_eq!((system.got(0).status, system.got(0).words), (Status::Ok, words(5)));
}
