//! The supervisor against a machine that dies in every way.

mod fake;

use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{ServiceState, VmKind};
use caisson_proto::supervisor::{End, ExitKind, Forgive, verdict};
use caisson_proto::wire::{Request, Words};
use proptest::prelude::*;

use self::fake::{FIRMWARE, Fake, PROCESSOR, VMMS, report, setup};
use super::*;

fn running() -> (Supervisor, Fake) {
    let (mut supervisor, mut fake) = (Supervisor::new(), Fake::new());
    supervisor.start(&setup(0), &mut fake);
    (supervisor, fake)
}

/// Lets time and memory run until nothing happens any more.
fn run(supervisor: &mut Supervisor, fake: &mut Fake, memory_settles: bool) {
    for _ in 0..1000 {
        if fake.ended.is_some() {
            return;
        }
        if memory_settles && fake.gone > 0 && fake.states[4].state == ServiceState::Running {
            fake.gone = 0;
            supervisor.doorbell(doorbell::SETTLED, fake);
        } else if let Some(at) = fake.timer.take() {
            fake.now = fake.now.max(at);
            supervisor.doorbell(doorbell::TIMER, fake);
        } else {
            return;
        }
    }
}

#[test]
fn callees_are_started_before_their_callers() {
    let (_, fake) = running();
    assert_eq!(fake.started, [6, 5, 4, 3, 2, 1]);
    assert_eq!(fake.ended, None);
}

#[test]
fn a_faulted_service_is_restarted_and_told_of() {
    let (mut supervisor, mut fake) = running();
    fake.die(4, ServiceState::Faulted, 14 << 32);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[4].id.generation(), 1);
    let notice = fake.posted[0];
    assert_eq!((notice.slot, notice.state, notice.kind, notice.action), (4, 2, 1, 1));
    assert_eq!(fake.ended, None);
}

#[test]
fn a_restart_waits_until_the_calls_are_unwound() {
    let (mut supervisor, mut fake) = running();
    fake.unwinding = 3;
    fake.die(4, ServiceState::Faulted, 0);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[4].state, ServiceState::Faulted);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.states[4].state, ServiceState::Running);
}

#[test]
fn a_service_that_dies_again_and_again_ends_the_machine() {
    let (mut supervisor, mut fake) = running();
    for _ in 0..=limit::RESTARTS {
        fake.now += 100;
        fake.die(1, ServiceState::Faulted, 0);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    }
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::FAULTED));
    assert_eq!(fake.posted.last().unwrap().action, 0);
}

#[test]
fn the_machine_ends_when_the_last_vm_did_and_memory_settled() {
    let (mut supervisor, mut fake) = running();
    fake.exit(2, ExitKind::PoweredOff);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, None);
    fake.exit(3, ExitKind::PoweredOff);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.gone, 1);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::CLEAN));
    assert_eq!(fake.posted.len(), 2);
}

#[test]
fn memory_that_never_settles_is_a_fault() {
    let (mut supervisor, mut fake) = running();
    let _ = VMMS.map(|slot| fake.exit(slot, ExitKind::PoweredOff));
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut supervisor, &mut fake, false);
    assert_eq!(fake.ended, Some(verdict::FAULTED));
    assert!(fake.now >= 10_000);
}

#[test]
fn a_console_that_reads_nothing_only_delays_the_end() {
    let (mut supervisor, mut fake) = running();
    fake.console_reads = false;
    let _ = VMMS.map(|slot| fake.exit(slot, ExitKind::PoweredOff));
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::CLEAN));
}

#[test]
fn with_the_secure_processor_its_guests_end_and_no_others() {
    for (kinds, ended) in [
        ([VmKind::Plain, VmKind::Plain], vec![FIRMWARE]),
        ([VmKind::Plain, VmKind::SevEs], vec![3, FIRMWARE]),
        ([VmKind::Sev, VmKind::SevSnp], vec![2, 3, FIRMWARE]),
    ] {
        let (mut supervisor, mut fake) = running();
        fake.kinds = kinds.into();
        fake.die(PROCESSOR, ServiceState::Faulted, 0);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        assert_eq!(fake.unprotected, ended);
        let lives = |slot: usize| (fake.states[slot].state, fake.states[slot].id.generation());
        assert_eq!(lives(PROCESSOR), (ServiceState::Running, 1));
        assert_eq!(lives(FIRMWARE), (ServiceState::Running, 1));
        for (vmm, kind) in VMMS.into_iter().zip(kinds) {
            let expected = if kind == VmKind::Plain { ServiceState::Running } else { ServiceState::Killed };
            assert_eq!(lives(vmm), (expected, 0), "{kind:?}");
        }
    }
}

#[test]
fn who_speaks_for_the_processor_takes_nobody_along() {
    let (mut supervisor, mut fake) = running();
    fake.kinds = vec![VmKind::Sev, VmKind::Sev];
    fake.die(FIRMWARE, ServiceState::Faulted, 0);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert!(fake.unprotected.is_empty());
}

#[test]
fn a_reset_waits_for_the_old_memory_and_trusts_no_stale_bell() {
    let (mut supervisor, mut fake) = running();
    fake.exit(2, ExitKind::Reset);
    // This bell rang before the VM died and arrives with the news of its death.
    supervisor.doorbell(doorbell::SERVICE_DIED | doorbell::SETTLED, &mut fake);
    assert_eq!(fake.states[2].state, ServiceState::Exited);
    // This one rang before memory heard of the death.
    supervisor.doorbell(doorbell::SETTLED, &mut fake);
    assert_eq!(fake.states[2].state, ServiceState::Exited);
    assert_eq!(fake.gone, 2);
    supervisor.doorbell(doorbell::SETTLED, &mut fake);
    assert_eq!(fake.states[2].state, ServiceState::Running);
    assert_eq!(fake.ended, None);
}

#[test]
fn a_guest_that_resets_without_end_is_ended() {
    let (mut supervisor, mut fake) = running();
    fake.exit(3, ExitKind::PoweredOff);
    for _ in 0..=limit::RESTARTS {
        fake.exit(2, ExitKind::Reset);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        run(&mut supervisor, &mut fake, true);
    }
    assert_eq!(fake.ended, Some(verdict::GUEST_CRASHED));
}

#[test]
fn each_end_of_a_vm_has_its_verdict() {
    for (kind, expected) in [
        (ExitKind::PoweredOff, verdict::CLEAN),
        (ExitKind::TestEnded, verdict::CLEAN),
        (ExitKind::Crashed, verdict::GUEST_CRASHED),
        (ExitKind::BadSetup, verdict::BAD_SETUP),
        (ExitKind::Panicked, verdict::FAULTED),
    ] {
        let (mut supervisor, mut fake) = running();
        fake.exit(2, kind);
        fake.exit(3, ExitKind::PoweredOff);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        run(&mut supervisor, &mut fake, true);
        assert_eq!(fake.ended, Some(expected), "{kind:?}");
    }
}

/// Lets both VMs power off, and returns the verdict.
fn over(supervisor: &mut Supervisor, fake: &mut Fake) -> Option<u8> {
    let _ = VMMS.map(|slot| fake.exit(slot, ExitKind::PoweredOff));
    supervisor.doorbell(doorbell::SERVICE_DIED, fake);
    run(supervisor, fake, true);
    fake.ended
}

#[test]
fn a_service_that_panics_casts_doubt_on_the_machine() {
    let (mut supervisor, mut fake) = running();
    fake.exit(4, ExitKind::Panicked);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[4].state, ServiceState::Running);
    assert_eq!(over(&mut supervisor, &mut fake), Some(verdict::FAULTED));
}

#[test]
fn a_service_is_ended_on_request_and_started_again() {
    let (mut supervisor, mut fake) = running();
    let agent = ServiceId::new(4, 0);
    let mut ask = |request: Words, fake: &mut Fake| supervisor.handle(agent, &request, fake).0;
    assert_eq!(ask(End { slot: 1 }.encode(), &mut fake), Status::Ok);
    assert_eq!(ask(End { slot: 1 }.encode(), &mut fake), Status::State);
    assert_eq!(ask(End { slot: 7 }.encode(), &mut fake), Status::NotFound);
    assert_eq!(ask(Forgive { slot: 7 }.encode(), &mut fake), Status::NotFound);
    assert_eq!(ask([9; 8], &mut fake), Status::Malformed);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[1].state, ServiceState::Running);
    assert_eq!(over(&mut supervisor, &mut fake), Some(verdict::CLEAN), "nothing was wrong with it");
}

#[test]
fn a_service_that_is_forgiven_may_be_restarted_without_end() {
    let (mut supervisor, mut fake) = running();
    for _ in 0..3 * limit::RESTARTS {
        assert_eq!(supervisor.handle(ServiceId::new(4, 0), &Forgive { slot: 1 }.encode(), &mut fake).0, Status::Ok);
        fake.die(1, ServiceState::Faulted, 0);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        assert_eq!(fake.states[1].state, ServiceState::Running);
    }
}

#[test]
fn a_successor_takes_over_whatever_its_predecessor_left() {
    let (mut supervisor, mut fake) = running();
    // One VM is over already; another and memory die with nobody to see to it.
    fake.exit(2, ExitKind::PoweredOff);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(supervisor.handle(ServiceId::new(4, 0), &End { slot: 0 }.encode(), &mut fake).0, Status::Ok);
    fake.exit(3, ExitKind::Reset);
    fake.die(4, ServiceState::Faulted, 0);
    fake.states[1] = report(1, ServiceState::Unstarted);
    let (mut successor, before) = (Supervisor::new(), fake.posted.len());
    successor.start(&setup(1), &mut fake);
    assert_eq!((fake.posted[before].slot, fake.posted[before].state), (0, ServiceState::Faulted as u8));
    run(&mut successor, &mut fake, true);
    let states = [1, 2, 3, 4].map(|slot| fake.states[slot].state);
    use ServiceState::{Exited, Running};
    assert_eq!(states, [Running, Exited, Running, Running]);
    fake.exit(3, ExitKind::PoweredOff);
    successor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut successor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::FAULTED));
}

proptest! {
    /// Whatever dies, in any order: with all VMs over, the machine ends once, and with the worst verdict.
    #[test]
    fn it_always_ends(deaths in prop::collection::vec((1..5usize, 0..6u64, any::<bool>()), 0..60)) {
        let (mut supervisor, mut fake) = running();
        let mut faulted = false;
        for (slot, code, settle) in deaths {
            if fake.states[slot].state != ServiceState::Running {
                continue;
            }
            fake.now += 500;
            let state = if code == 5 { ServiceState::Faulted } else { ServiceState::Exited };
            faulted |= fake.ended.is_none() && (!VMMS.contains(&slot) || code >= 4);
            fake.die(slot, state, code);
            supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
            if settle {
                run(&mut supervisor, &mut fake, true);
            }
        }
        run(&mut supervisor, &mut fake, true);
        for slot in VMMS {
            if fake.ended.is_none() && fake.states[slot].state == ServiceState::Running {
                fake.exit(slot, ExitKind::PoweredOff);
            }
        }
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        run(&mut supervisor, &mut fake, true);
        prop_assert!(fake.ended.is_some());
        prop_assert!(!faulted || fake.ended == Some(verdict::FAULTED));
    }
}
