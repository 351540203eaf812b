//! Which context runs, and until when.

use caisson_core::context::{Context, Phase};
use caisson_core::schedule::{BELLS_IN_A_ROW, SLICE_MS, WATCH_MS};
use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::{Sender, Tsc, VcpuId, VmId};
use caisson_proto::exits::code;
use caisson_proto::kernel::{FaultKind, ServiceKill, TimerSet, VcpuKick, VcpuRun, VmDestroy, VmKind};
use caisson_proto::vcpu::{Action, Exit};

use super::fake::KHZ;
use super::system::{At, MEMORY, NOTIFIER, OTHER_VMM, SUPERVISOR, System, VMM, words};

fn vcpu(vm: VmId, index: usize) -> Context {
    Context::vcpu(vm.index(), index)
}

/// One VM with three vCPUs on one CPU, all ready.
fn crowd() -> (System, VmId) {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 3, 64);
    system.awake(0, VMM);
    for index in 0..3 {
        system.ask(0, &VcpuRun { vcpu: VcpuId { vm, index } }).unwrap();
    }
    (system, vm)
}

fn exit_of(system: &System, cpu: usize) -> Exit {
    assert_eq!(system.got(cpu).sender, Sender::VCPU);
    Exit::from_words(&system.got(cpu).words).unwrap()
}

#[test]
fn vcpus_take_turns_in_slices() {
    let (mut system, vm) = crowd();
    let mut order = vec![system.resume(0, Action::Run, 0)];
    // The reply above was to a doorbell; its words don't matter.
    for _ in 0..6 {
        assert_eq!(system.pick(0), *order.last().unwrap(), "its slice goes on");
        let end = system.machine.timer.get();
        assert_eq!(end, system.machine.now.get() + SLICE_MS * KHZ);
        system.machine.now.set(end);
        assert!(!system.here(0).tick());
        order.push(system.pick(0));
    }
    let expected: Vec<At> = [0, 1, 2, 0, 1, 2, 0].map(|n| At::Guest(vcpu(vm, n))).to_vec();
    assert_eq!(order, expected);
}

#[test]
fn a_vcpu_without_rivals_has_no_slice() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    assert_eq!(system.pick(0), At::Guest(vcpu(vm, 0)));
    assert_eq!(system.locals[0].slice_end.get(), 0);
    system.machine.now.set(1 << 40);
    assert_eq!(system.pick(0), At::Guest(vcpu(vm, 0)));
}

#[test]
fn doorbells_come_before_vcpus_and_the_highest_rank_first() {
    let (mut system, vm) = crowd();
    assert_eq!(system.resume(0, Action::Run, 0), At::Guest(vcpu(vm, 0)));
    for slot in [SUPERVISOR, NOTIFIER, MEMORY] {
        system.here(0).ring(slot, 1);
    }
    assert_eq!(system.pick(0), At::User(NOTIFIER));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(MEMORY));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(SUPERVISOR));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Guest(vcpu(vm, 1)));
}

#[test]
fn a_kick_wakes_what_is_parked_and_stops_what_runs() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 2, 64);
    for index in 0..2 {
        system.run(VMM, VcpuId { vm, index });
    }
    let (a, b) = (vcpu(vm, 0), vcpu(vm, 1));
    assert_eq!(system.pick(1), At::Guest(b));
    assert!(system.here(1).entering(b));
    assert_eq!(system.guest_exit(0, a, code::HLT), At::User(VMM));
    system.machine.interrupted.borrow_mut().clear();
    system.ask(0, &VcpuKick { vcpu: VcpuId { vm, index: 1 } }).unwrap();
    assert_eq!(system.machine.interrupted.borrow_mut().pop().map(|cpu| cpu.0), Some(1));
    assert_eq!(system.resume(0, Action::Park, 0), At::Idle);
    assert_eq!(system.kernel.context(a).phase.get(), Phase::Parked);
    system.here(1).context(b).leave();
    assert_eq!(system.pick(1), At::User(VMM));
    assert_eq!((exit_of(&system, 1).vcpu, exit_of(&system, 1).code), (1, code::KICK));
    system.ask(1, &VcpuKick { vcpu: VcpuId { vm, index: 0 } }).unwrap();
    assert_eq!(system.machine.interrupted.borrow_mut().pop().map(|cpu| cpu.0), Some(0));
    assert_eq!(system.pick(0), At::Idle, "its vmm is busy");
    assert_eq!(system.resume(1, Action::Stop, 0), At::Idle);
    assert_eq!(system.pick(0), At::User(VMM));
    assert_eq!((exit_of(&system, 0).vcpu, exit_of(&system, 0).code), (0, code::KICK));
}

#[test]
fn a_kick_between_the_choice_and_the_entry_is_not_lost() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    let a = vcpu(vm, 0);
    assert_eq!(system.pick(0), At::Guest(a));
    system.awake(1, MEMORY);
    system.ask(1, &VmDestroy { vm }).unwrap();
    assert!(!system.here(0).entering(a), "its VM is dying");
    assert!(!system.kernel.context(a).in_guest());
    assert_eq!(system.pick(0), At::Idle);
    assert_eq!(system.kernel.context(a).phase.get(), Phase::Idle);
}

#[test]
fn a_kick_that_comes_while_the_vmm_answers_undoes_the_parking() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    assert_eq!(system.guest_exit(0, vcpu(vm, 0), code::HLT), At::User(VMM));
    system.ask(0, &VcpuKick { vcpu: VcpuId { vm, index: 0 } }).unwrap();
    assert_eq!(system.resume(0, Action::Park, 0), At::User(VMM));
    assert_eq!(exit_of(&system, 0).code, code::KICK);
    assert_eq!(system.resume(0, Action::Park, 0), At::Idle);
}

#[test]
fn a_parked_vcpu_wakes_at_its_deadline() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    assert_eq!(system.guest_exit(0, vcpu(vm, 0), code::HLT), At::User(VMM));
    assert_eq!(system.resume(0, Action::Park, 777), At::Idle);
    assert_eq!(system.machine.timer.get(), 777);
    system.machine.now.set(776);
    assert!(!system.here(0).tick());
    assert_eq!(system.pick(0), At::Idle, "too early");
    assert_eq!(system.machine.timer.get(), 777);
    system.machine.now.set(777);
    assert!(!system.here(0).tick());
    assert_eq!(system.pick(0), At::User(VMM));
    assert_eq!(exit_of(&system, 0).code, code::TIMER);
}

#[test]
fn a_deadline_reaches_a_running_guest() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    assert_eq!(system.guest_exit(0, vcpu(vm, 0), code::IOIO), At::User(VMM));
    let at = system.resume(0, Action::Run, 500);
    assert_eq!(at, At::Guest(vcpu(vm, 0)));
    system.machine.now.set(500);
    assert!(!system.here(0).tick());
    assert_eq!(system.pick(0), At::User(VMM));
    assert_eq!(exit_of(&system, 0).code, code::TIMER);
}

#[test]
fn a_deadline_of_a_dead_vcpu_wakes_its_successor_where_that_is_at_home() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 2, 64);
    let b = vcpu(vm, 1);
    system.run(VMM, VcpuId { vm, index: 1 });
    assert_eq!(system.pick(1), At::Guest(b));
    assert_eq!(system.guest_exit(1, b, code::HLT), At::User(VMM));
    assert_eq!(system.resume(1, Action::Park, 100), At::Idle);
    // CPU 0 still has the deadline of a former vCPU of this number.
    system.here(0).local.timed.insert(b);
    system.locals[0].next_deadline.set(90);
    system.machine.now.set(100);
    system.machine.interrupted.borrow_mut().clear();
    system.here(0).tick();
    assert_eq!(system.pick(0), At::Idle, "it is at home on the other CPU");
    assert_eq!(system.machine.interrupted.borrow_mut().pop().map(|cpu| cpu.0), Some(1));
    assert_eq!(system.pick(1), At::User(VMM));
}

#[test]
fn a_note_of_a_dead_vcpu_runs_nothing() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 2, 64);
    let b = vcpu(vm, 1);
    system.run(VMM, VcpuId { vm, index: 1 });
    system.here(0).local.ready.insert(b);
    assert_eq!(system.pick(0), At::Idle);
    assert_eq!(system.pick(1), At::Guest(b));
}

#[test]
fn a_service_timer_rings_once() {
    let mut system = System::new(1);
    system.as_service(VMM, &TimerSet { at: Tsc(50) }).unwrap();
    assert_eq!(system.machine.timer.get(), 50);
    system.machine.now.set(50);
    assert!(!system.here(0).tick());
    assert_eq!(system.pick(0), At::User(VMM));
    assert_eq!((system.got(0).sender, system.got(0).words), (Sender::DOORBELL, words(doorbell::TIMER)));
    assert_eq!(system.ask(0, &TimerSet { at: Tsc(90) }), Ok(caisson_proto::wire::Done {}));
    assert_eq!(system.ask(0, &TimerSet { at: Tsc(0) }), Ok(caisson_proto::wire::Done {}));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
    system.machine.now.set(1000);
    system.here(0).tick();
    assert_eq!(system.pick(0), At::Idle, "it was cancelled");
}

/// Looks of the watchdog until the service in user mode is to end.
fn looks_until_overrun(system: &System) -> u64 {
    (1..)
        .find(|_| {
            system.machine.now.set(system.machine.now.get() + WATCH_MS * KHZ);
            system.here(0).tick()
        })
        .unwrap()
}

#[test]
fn a_service_that_runs_too_long_faults() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    system.call(0, MEMORY, words(1));
    // A budget of 100 ms, looked at every 50.
    assert_eq!(looks_until_overrun(&system), 3);
    let mut frame = system.frames[0];
    let next = system.here(0).overrun(&mut frame);
    system.frames[0] = frame;
    assert_eq!(system.settle(0, next), At::User(VMM));
    assert_eq!(system.got(0).status, Status::Died);
    let epitaph = *system.kernel.service(MEMORY).epitaph.lock();
    assert_eq!((epitaph.fault, epitaph.code), (FaultKind::Overrun, 100));
}

#[test]
fn a_service_that_serves_many_does_not_overrun() {
    let mut system = System::new(1);
    for n in 0..20 {
        system.awake(0, VMM);
        system.machine.now.set(system.machine.now.get() + WATCH_MS * KHZ);
        assert!(!system.here(0).tick());
        assert_eq!(system.call(0, MEMORY, words(n)), At::User(MEMORY));
        assert_eq!(system.reply(0, Status::Ok, words(n)), At::User(VMM));
        assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
    }
}

#[test]
fn a_service_that_calls_again_and_again_for_one_request_overruns() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    let mut looks = 0;
    while system.call(0, MEMORY, words(1)) == At::User(MEMORY) {
        system.machine.now.set(system.machine.now.get() + WATCH_MS * KHZ);
        assert!(!system.here(0).tick(), "whom it calls is not to blame");
        system.reply(0, Status::Ok, [0; 8]);
        looks += 1;
    }
    // Four times its budget of 100 ms, looked at every 50.
    assert_eq!(looks, 9);
    let epitaph = *system.kernel.service(VMM).epitaph.lock();
    assert_eq!((epitaph.fault, epitaph.code), (FaultKind::Overrun, 100));
}

#[test]
fn a_callee_that_calls_for_ever_ends_and_its_caller_goes_on() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    system.call(0, MEMORY, words(1));
    let mut at = At::User(MEMORY);
    for _ in 0..9 {
        assert_eq!(at, At::User(MEMORY));
        system.call(0, NOTIFIER, words(2));
        system.machine.now.set(system.machine.now.get() + WATCH_MS * KHZ);
        assert!(!system.here(0).tick(), "whom it calls is not to blame");
        at = system.reply(0, Status::Ok, [0; 8]);
    }
    assert_eq!(at, At::User(VMM));
    assert_eq!(system.got(0).status, Status::Died);
    assert_eq!(system.kernel.service(MEMORY).epitaph.lock().fault, FaultKind::Overrun);
    // It waited as long as the other ran, and has its own time now.
    system.machine.now.set(system.machine.now.get() + WATCH_MS * KHZ);
    assert!(!system.here(0).tick());
    assert!(!system.kernel.service(VMM).is_doomed());
}

#[test]
fn a_jump_of_the_hosts_time_is_not_the_services() {
    let mut system = System::new(1);
    system.awake(0, VMM);
    assert!(!system.here(0).tick());
    system.machine.now.set(system.machine.now.get() + (1 << 40));
    assert!(!system.here(0).tick());
}

#[test]
fn doorbells_without_end_leave_vcpus_their_time() {
    let (mut system, vm) = crowd();
    system.here(0).ring(MEMORY, 1);
    system.here(0).ring(NOTIFIER, 1);
    let mut at = system.resume(0, Action::Run, 0);
    for turn in 0..6 {
        let mut bells = 0;
        while let At::User(slot) = at {
            bells += 1;
            system.here(0).ring(slot, 1);
            at = system.reply(0, Status::Ok, [0; 8]);
        }
        assert_eq!(at, At::Guest(vcpu(vm, turn % 3)));
        // Some of the first round's were before there were vCPUs.
        assert!(bells == BELLS_IN_A_ROW || turn == 0 && bells < BELLS_IN_A_ROW);
        assert_eq!(system.machine.timer.get(), system.machine.now.get() + SLICE_MS * KHZ, "they wait for a slice");
        at = system.pick(0);
    }
}

#[test]
fn a_condemned_service_that_never_replies_ends_at_the_next_look() {
    let mut system = System::new(2);
    system.awake(0, VMM);
    system.awake(1, SUPERVISOR);
    system.ask(1, &ServiceKill { service: system.id(VMM) }).unwrap();
    assert_eq!(looks_until_overrun(&system), 1);
    let mut frame = system.frames[0];
    let next = system.here(0).overrun(&mut frame);
    system.frames[0] = frame;
    assert_eq!(system.settle(0, next), At::Idle, "its doorbell's activation is over");
    assert_eq!(system.reply(1, Status::Ok, [0; 8]), At::User(SUPERVISOR));
    assert_eq!(system.got(1).words, words(doorbell::SERVICE_DIED));
}

#[test]
fn an_activation_stays_where_it_was_queued() {
    let mut system = System::new(2);
    system.here(1).ring(OTHER_VMM, 1);
    system.here(0).ring(OTHER_VMM, 2);
    assert_eq!(system.pick(0), At::Idle);
    assert_eq!(system.pick(1), At::User(OTHER_VMM));
    assert_eq!(system.got(1).words, words(3));
}
