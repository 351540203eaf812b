//! Ends and restarts of services, and what their callers see.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use caisson_core::context::{Context, Phase};
use caisson_core::death::SUPERVISORS;
use caisson_core::event::Event;
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{Sender, ServiceId, VPage, VcpuId};
use caisson_proto::exits::code;
use caisson_proto::kernel::{
    FaultKind, ServiceKill, ServiceReport, ServiceRestart, ServiceState, ServiceStatus, VmKind, VmState, verdict,
};
use caisson_proto::vcpu::Action;

use super::system::{At, MEMORY, NOTIFIER, OTHER_VMM, SERVICES, SUPERVISOR, System, VMM, words};

fn status(system: &mut System, slot: usize) -> ServiceReport {
    system.as_service(SUPERVISOR, &ServiceStatus { slot: slot as u16 }).unwrap()
}

#[test]
fn an_idle_service_is_killed_at_once_and_started_anew() {
    let mut system = System::new(2);
    let old = system.id(MEMORY);
    system.here(1).ring(MEMORY, 2);
    system.awake(0, SUPERVISOR);
    system.ask(0, &ServiceKill { service: old }).unwrap();
    assert_eq!(system.ask(0, &ServiceKill { service: old }), Err(Status::Dead));
    let new = system.id(MEMORY);
    assert_eq!(system.ask(0, &ServiceKill { service: new }), Err(Status::State), "it is dead");
    assert_eq!(system.ask(0, &ServiceRestart { service: old }), Err(Status::Dead));
    assert_eq!(system.ask(0, &ServiceRestart { service: new }), Err(Status::Busy), "a bell is on its way to the old");
    assert!(!system.kernel.service(MEMORY).turn.is_taken());
    assert_eq!(system.pick(1), At::Idle, "nobody hears it");
    assert_eq!(system.ask(0, &ServiceRestart { service: new }).unwrap().id, new);
    assert_eq!(system.ask(0, &ServiceRestart { service: new }), Err(Status::State), "it runs");
    assert_eq!(system.machine.reset.borrow().last(), Some(&MEMORY));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(MEMORY));
    assert_eq!(system.got(0).sender, Sender::START, "and not the bell that rang for its predecessor");
    assert_eq!(system.frames[0].rip, caisson_proto::layout::IMAGE);
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::User(SUPERVISOR));
    assert_eq!(system.got(0).words, words(doorbell::SERVICE_DIED));
    assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
    assert_eq!(system.machine.events.borrow()[..2], [Event::Killed(old), Event::Started(new)]);
}

#[test]
fn a_service_inside_a_chain_ends_when_the_chain_comes_back_to_it() {
    let mut system = System::new(2);
    system.awake(0, VMM);
    system.call(0, MEMORY, words(1));
    system.call(0, NOTIFIER, words(2));
    system.awake(1, SUPERVISOR);
    let memory = system.id(MEMORY);
    system.ask(1, &ServiceKill { service: memory }).unwrap();
    assert_eq!(system.id(MEMORY), memory, "not yet");
    assert_eq!(system.ask(1, &ServiceRestart { service: memory }), Err(Status::State));
    assert_eq!(system.reply(0, Status::Ok, words(3)), At::User(VMM), "memory isn't entered again");
    assert_eq!(system.got(0).status, Status::Died);
    assert_ne!(system.id(MEMORY), memory);
    let new = system.id(MEMORY);
    assert_eq!(system.ask(1, &ServiceRestart { service: new }).unwrap().id, new);
    assert!(!system.kernel.service(NOTIFIER).turn.is_taken());
}

#[test]
fn a_condemned_service_answers_nobody_any_more() {
    let mut system = System::new(2);
    system.awake(0, VMM);
    system.call(0, MEMORY, words(1));
    system.awake(1, SUPERVISOR);
    system.ask(1, &ServiceKill { service: system.id(MEMORY) }).unwrap();
    assert_eq!(system.reply(0, Status::Ok, words(3)), At::User(VMM));
    assert_eq!(system.got(0).status, Status::Died);
    assert_eq!(system.kernel.service(MEMORY).epitaph.lock().state, ServiceState::Killed);
}

#[test]
fn a_service_that_is_condemned_while_it_replies_does_not_live_on() {
    let mut system = System::new(1);
    let memory = system.id(MEMORY);
    let lease = Lease { page: VPage(0x400), pages: 1, write: false };
    system.awake(0, VMM);
    system.call_id(0, memory, lease.to_word(), words(1));
    // The killer finds the turn taken, and leaves the rest to whoever has it.
    let kernel = Rc::clone(&system.kernel);
    *system.machine.at_take_back.borrow_mut() = Some(Box::new(move || assert!(kernel.service(MEMORY).condemn())));
    assert_eq!(system.reply(0, Status::Ok, words(3)), At::User(VMM));
    assert_eq!(system.got(0).words, words(3), "it was answered before");
    assert_ne!(system.id(MEMORY), memory);
    assert!(!system.kernel.service(MEMORY).is_alive());
}

#[test]
fn callers_that_queue_at_a_dying_service_hear_that_it_is_dead() {
    let mut system = System::new(3);
    system.awake(0, VMM);
    system.call(0, MEMORY, words(1));
    system.awake(1, OTHER_VMM);
    assert_eq!(system.call(1, MEMORY, words(2)), At::Idle);
    system.exit(0, 4);
    assert_eq!(system.here(0).restart(MEMORY), Err(Status::Busy), "somebody is still to be told");
    assert_eq!(system.pick(1), At::User(OTHER_VMM));
    let new = system.id(MEMORY);
    assert_eq!((system.got(1).status, system.got(1).words), (Status::Dead, words(new.bits().into())));
    assert!(system.here(0).restart(MEMORY).is_ok());
}

#[test]
fn the_reply_to_a_caller_that_was_condemned_goes_to_its_caller_as_died() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    let vcpu = Context::vcpu(vm.index(), 0);
    assert_eq!(system.guest_exit(0, vcpu, code::HLT), At::User(VMM));
    system.call(0, MEMORY, words(1));
    system.awake(1, SUPERVISOR);
    system.ask(1, &ServiceKill { service: system.id(VMM) }).unwrap();
    assert_eq!(system.reply(0, Status::Ok, words(1)), At::Idle, "the vCPU runs no more");
    assert_eq!(system.kernel.context(vcpu).phase.get(), Phase::Idle);
    assert_eq!(system.kernel.vms[vm.index()].state(), Some(VmState::Dying));
}

#[test]
fn a_vmm_that_dies_takes_its_vm_with_it() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 2, 64);
    let [a, b] = [0, 1].map(|index| Context::vcpu(vm.index(), index));
    system.run(VMM, VcpuId { vm, index: 0 });
    system.run(VMM, VcpuId { vm, index: 1 });
    assert_eq!(system.pick(1), At::Guest(b));
    assert!(system.here(1).entering(b));
    system.machine.interrupted.borrow_mut().clear();
    assert_eq!(system.guest_exit(0, a, code::IOIO), At::User(VMM));
    assert_eq!(system.exit(0, 2), At::User(SUPERVISOR));
    assert_eq!(system.machine.interrupted.borrow().len(), 1, "the other vCPU is in its guest");
    system.here(1).context(b).leave();
    assert_eq!(system.pick(1), At::Idle);
    assert_eq!(system.kernel.context(b).phase.get(), Phase::Idle);
    let vmm = system.id(VMM);
    assert_eq!(system.ask(0, &ServiceRestart { service: vmm }), Err(Status::State), "its VM is still there");
}

#[test]
fn a_reply_that_is_no_resume_faults_the_vmm() {
    for (status, reply) in
        [(Status::Ok, words(3)), (Status::Busy, words(0)), (Status::Ok, words(1 << 16)), (Status::Ok, words(4 << 8))]
    {
        let mut system = System::new(1);
        let vm = system.vm(VMM, VmKind::Plain, 1, 64);
        system.run(VMM, VcpuId { vm, index: 0 });
        let vcpu = Context::vcpu(vm.index(), 0);
        assert_eq!(system.guest_exit(0, vcpu, code::HLT), At::User(VMM));
        assert_eq!(system.reply(0, status, reply), At::User(SUPERVISOR));
        assert_eq!(system.kernel.service(VMM).epitaph.lock().fault, FaultKind::Protocol);
        assert_eq!(system.kernel.context(vcpu).phase.get(), Phase::Idle);
    }
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.run(VMM, VcpuId { vm, index: 0 });
    system.guest_exit(0, Context::vcpu(vm.index(), 0), code::HLT);
    system.machine.refuse.set(true);
    assert_eq!(system.resume(0, Action::Run, 0), At::User(SUPERVISOR), "what the processor refuses");
}

#[test]
fn a_supervisor_that_dies_is_started_again_but_not_for_ever() {
    let mut system = System::new(1);
    for life in 0..SUPERVISORS {
        assert_eq!(system.id(SUPERVISOR).generation(), life);
        system.awake(0, SUPERVISOR);
        assert_eq!(system.exit(0, 4), At::User(SUPERVISOR));
        assert_eq!(system.got(0).sender, Sender::START);
        assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
        assert_eq!(system.machine.off.get(), None);
    }
    system.awake(0, SUPERVISOR);
    assert_eq!(system.exit(0, 4), At::Idle);
    assert_eq!(system.machine.off.get(), Some(verdict::FAULTED));
}

#[test]
fn a_supervisor_is_started_again_when_its_queue_has_heard_of_its_death() {
    let mut system = System::new(2);
    system.kernel.service(MEMORY).may_call.fetch_or(1 << SUPERVISOR, Ordering::Relaxed);
    system.awake(0, MEMORY);
    assert_eq!(system.call(0, SUPERVISOR, words(1)), At::User(SUPERVISOR));
    system.here(1).ring(SUPERVISOR, 2);
    assert_eq!(system.pick(1), At::Idle, "its bell waits for its turn");
    assert_eq!(system.exit(0, 4), At::User(MEMORY));
    assert_eq!(system.got(0).status, Status::Died);
    assert!(!system.kernel.service(SUPERVISOR).is_alive());
    assert_eq!(system.pick(1), At::User(SUPERVISOR));
    assert_eq!(system.got(1).sender, Sender::START);
    assert_eq!(system.machine.off.get(), None);
}

#[test]
fn a_supervisor_that_dies_in_a_call_is_started_again_by_the_last_in_its_queue() {
    let mut system = System::new(2);
    for caller in [MEMORY, NOTIFIER] {
        system.kernel.service(caller).may_call.fetch_or(1 << SUPERVISOR, Ordering::Relaxed);
    }
    system.awake(0, MEMORY);
    system.awake(1, NOTIFIER);
    assert_eq!(system.call(0, SUPERVISOR, words(1)), At::User(SUPERVISOR));
    assert_eq!(system.call(1, SUPERVISOR, words(1)), At::Idle, "it waits");
    assert_eq!(system.exit(0, 4), At::User(MEMORY));
    assert!(!system.kernel.service(SUPERVISOR).is_alive());
    assert_eq!(system.pick(1), At::User(NOTIFIER));
    assert_eq!(system.got(1).status, Status::Dead);
    assert!(system.kernel.service(SUPERVISOR).is_alive());
    assert_eq!(system.reply(1, Status::Ok, [0; 8]), At::User(SUPERVISOR));
    assert_eq!(system.got(1).sender, Sender::START);
}

#[test]
fn a_report_tells_how_each_service_fares() {
    let mut system = System::cold(1);
    system.here(0).restart(SUPERVISOR).unwrap();
    assert_eq!(system.pick(0), At::User(SUPERVISOR));
    let report = system.ask(0, &ServiceStatus { slot: MEMORY as u16 }).unwrap();
    assert_eq!((report.id, report.state), (ServiceId::new(MEMORY as u16, 0), ServiceState::Unstarted));
    assert_eq!(system.ask(0, &ServiceStatus { slot: SERVICES as u16 }), Err(Status::NotFound));
    let nobody = ServiceId::new(SERVICES as u16, 0);
    assert_eq!(system.ask(0, &ServiceKill { service: nobody }), Err(Status::NotFound));
    let own = system.id(SUPERVISOR);
    assert_eq!(system.ask(0, &ServiceKill { service: own }), Err(Status::State), "not itself");
    system.reply(0, Status::Ok, [0; 8]);

    let mut system = System::new(1);
    assert_eq!(status(&mut system, VMM).state, ServiceState::Running);
    system.awake(0, VMM);
    system.syscall(0, 4, 0, [2, 11, 12, 13, 14, 15, 16, 0]);
    system.reply(0, Status::Ok, [0; 8]);
    let report = status(&mut system, VMM);
    assert_eq!((report.state, report.code), (ServiceState::Exited, 2));
    assert_eq!((report.rip, report.address, report.rsp, report.client), (11, 12, 13, 14));
}

#[test]
fn generations_come_round_after_15_bits() {
    let mut system = System::new(1);
    for _ in 0..0x8000 {
        system.here(0).restart(MEMORY).ok();
        system.here(0).ring(MEMORY, 1);
        assert_eq!(system.pick(0), At::User(MEMORY));
        system.exit(0, 4);
        assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
        assert_eq!(system.id(MEMORY).bits() & 1 << 31, 0, "it would be taken for a vCPU or a doorbell");
    }
    assert_eq!(system.id(MEMORY), ServiceId::new(MEMORY as u16, 0));
}
