//! The service dies at any point, and its successor finds everything: no ASID and no page is lost or doubled.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, MailboxRing, MailboxTake, VmInfo, VmKind};
use caisson_proto::mailbox;
use caisson_proto::wire::Request;
use caisson_qemu_psp::Status as Told;
use caisson_qemu_psp::rmp::State;
use caisson_sev_firmware::{COMMAND_MS, Phase};

use crate::kernel::{CONTEXTS, Fault};
use crate::world::*;

fn phase(world: &World, vm: VmId) -> Option<Phase> {
    world.firmware.account().guests.get(vm).map(|guest| guest.phase)
}

/// After this, nothing of before is known to the service.
fn restarted(world: &mut World) {
    world.restart();
    assert_eq!(world.platform().life, Life::Starting);
    world.pump();
    assert_eq!(world.platform().life, Life::Ready);
    world.check_quiet();
}

#[test]
fn guests_are_found_as_far_as_they_are() {
    let mut world = World::snp();
    let running = world.run_guest(0, VmKind::Sev);
    let (launching, _) = world.launch(1, VmKind::SevEs);
    let (measured, _) = world.launch(2, VmKind::Sev);
    world.job(vmm(2), &LaunchMeasure { vm: measured }, &[]).unwrap();
    let snp = world.run_guest(3, VmKind::SevSnp);
    let (snp_launching, _) = world.launch(4, VmKind::SevSnp);
    let bound = world.fake.vm(5, vmm(5), VmKind::Sev, 1);
    world.fake.fault(mailbox::LAUNCH_START, Fault::Fails(Told::ResourceLimit as u16));
    assert_eq!(world.start(bound, VmKind::Sev).status, Status::Exhausted);
    let before = world.firmware.account().clone();
    restarted(&mut world);
    let after = world.firmware.account();
    assert_eq!(
        (&after.guests, after.sev, after.snp, &after.leaked),
        (&before.guests, before.sev, before.snp, &before.leaked)
    );
    for (vm, expected) in [
        (running, Phase::Running),
        (launching, Phase::Launching),
        (measured, Phase::Measured),
        (snp, Phase::Running),
        (snp_launching, Phase::Launching),
        (bound, Phase::Bound),
    ] {
        assert_eq!(phase(&world, vm), Some(expected));
    }
    // And they go on from there.
    assert_eq!(world.ok(vmm(2), &LaunchFinish { vm: measured }).status, Status::Ok);
    assert_eq!(world.start(bound, VmKind::Sev).status, Status::Ok);
    assert_eq!(world.fake.asid_of(bound), Some(7));
}

#[test]
fn jobs_wait_while_it_looks_around() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    world.restart();
    let job = world.send(vmm(0), &LaunchStart { vm, policy: 0, owner: false }, &[]).unwrap();
    assert_eq!(world.result(vmm(0), job).unwrap().0.state, JobState::Waiting);
    world.pump();
    assert_eq!(world.result(vmm(0), job).unwrap().0.status, Status::Ok);
}

#[test]
fn a_predecessors_number_isnt_another_job() {
    let mut world = World::sev();
    let old = world.send(vmm(0), &PlatformRead { fact: PlatformFact::ChipId }, &[]).unwrap();
    world.pump();
    world.fake.now += 1000;
    restarted(&mut world);
    let new = world.send(vmm(0), &PlatformRead { fact: PlatformFact::ChipId }, &[]).unwrap();
    world.pump();
    assert!(new.0 > old.0);
    assert_eq!(world.result(vmm(0), old), Err(Status::NotFound));
    assert_eq!(world.result(vmm(0), new).unwrap().0.status, Status::Ok);
}

#[test]
fn a_predecessors_command_is_waited_for_and_its_answer_recorded() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    world.send(vmm(0), &LaunchStart { vm, policy: 0, owner: false }, &[]).unwrap();
    // LAUNCH_START is under way, and nobody has its number any more.
    world.restart();
    assert_eq!(world.platform().life, Life::Starting);
    world.pump();
    // It ended with a handle that nobody waits for: that was given back, and the launch can begin.
    assert_eq!((world.platform().life, phase(&world, vm)), (Life::Ready, Some(Phase::Bound)));
    assert_eq!(world.fake.row(5).handle, 0);
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
    world.check_quiet();
}

#[test]
fn a_predecessors_command_that_is_never_answered() {
    let mut world = World::sev();
    world.fake.fault(mailbox::GET_ID, Fault::Silent);
    world.send(vmm(0), &PlatformRead { fact: PlatformFact::ChipId }, &[]).unwrap();
    world.pump();
    world.restart();
    let job = world.send(vmm(0), &PlatformRead { fact: PlatformFact::ChipId }, &[]).unwrap();
    world.pump();
    world.elapse(COMMAND_MS - 1);
    assert_eq!(world.platform().life, Life::Starting);
    world.elapse(1);
    assert_eq!(world.platform().life, Life::Dead);
    assert_eq!(world.result(vmm(0), job).unwrap().0.cause, Cause::Dead);
}

#[test]
fn a_failed_end_is_tried_once_more_and_stays_counted() {
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    let failure = Fault::Fails(Told::HardwareErrorPlatform as u16);
    world.fake.faults.entry(mailbox::DECOMMISSION).or_default().extend([failure, failure]);
    world.bury(vm);
    assert_eq!((world.platform().leaked_asids, world.state(5)), (1, AsidState::Dirty));
    restarted(&mut world);
    assert_eq!(world.platform().leaked_asids, 1);
    // The processor came round: the ASID comes back.
    restarted(&mut world);
    assert_eq!(world.platform().leaked_asids, 0);
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush }).status, Status::Ok);
    let (next, _) = world.launch(1, VmKind::Sev);
    assert_eq!(world.fake.asid_of(next), Some(5));
}

#[test]
fn what_the_processor_still_knows_isnt_reclaimable() {
    let mut world = World::sev();
    let vms: Vec<_> = (0..4).map(|slot| world.run_guest(slot, VmKind::Sev)).collect();
    world.fake.fault(mailbox::DECOMMISSION, Fault::Fails(Told::HardwareErrorPlatform as u16));
    world.bury(vms[0]);
    // A successor that may not even try.
    world.fake.refused.insert(MailboxRing::OP, Status::Denied);
    restarted(&mut world);
    world.fake.refused.clear();
    assert_eq!(world.platform().leaked_asids, 0);
    world.fake.log.clear();
    let (_, report) = world.launch(4, VmKind::Sev);
    assert_eq!((report.status, report.cause, world.events()), (Status::Busy, Cause::Service, vec![]));
}

#[test]
fn a_guest_whose_vm_is_gone_is_ended() {
    let mut world = World::snp();
    let sev = world.run_guest(0, VmKind::Sev);
    let snp = world.run_guest(1, VmKind::SevSnp);
    for vm in [sev, snp] {
        world.fake.kill(vm);
        world.fake.release(vm);
    }
    restarted(&mut world);
    assert_eq!((world.state(5), world.state(1)), (AsidState::Dirty, AsidState::Dirty));
    assert_eq!((world.fake.row(5).handle, world.fake.row(1).handle), (0, 0));
    // One that is only dying is memory's to end: its vCPUs may run still.
    let dying = world.run_guest(2, VmKind::Sev);
    world.fake.kill(dying);
    restarted(&mut world);
    assert_eq!(phase(&world, dying), Some(Phase::Running));
    assert_eq!(world.ok(MEMORY, &Decommission { vm: dying }).status, Status::Ok);
}

#[test]
fn a_status_that_says_nothing_known_is_unknown_and_only_ends() {
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    world.fake.fault(mailbox::GUEST_STATUS, Fault::Fails(Told::HardwareErrorPlatform as u16));
    restarted(&mut world);
    assert_eq!(phase(&world, vm), Some(Phase::Unknown));
    assert_eq!(world.ok(vmm(0), &Attestation { vm, nonce_low: 0, nonce_high: 0 }).cause, Cause::Service);
    // Asked once more, it is known.
    world.job(vmm(0), &GuestStatus { vm }, &[]).unwrap();
    assert_eq!(phase(&world, vm), Some(Phase::Running));
    assert_eq!(world.ok(MEMORY, &Decommission { vm }).status, Status::Ok);
}

#[test]
fn a_mailbox_that_was_lent_in_part_comes_back_amid_the_survey() {
    for (kind, status) in [(VmKind::Sev, mailbox::GUEST_STATUS), (VmKind::SevSnp, mailbox::SNP_GUEST_STATUS)] {
        let mut world = World::snp();
        let vms = [world.run_guest(0, kind), world.run_guest(1, kind)];
        world.fake.lends_some = Some(status);
        world.restart();
        world.pump();
        assert_eq!((world.platform().life, world.fake.lends_some, world.fake.lent), (Life::Ready, None, 0));
        assert_eq!(vms.map(|vm| phase(&world, vm)), [Some(Phase::Unknown), Some(Phase::Running)]);
    }
}

#[test]
fn without_a_processor_or_a_capability() {
    for status in [Status::Denied, Status::Unsupported] {
        let mut world = World::new();
        world.fake.refused.insert(MailboxTake::OP, status);
        world.restart();
        assert_eq!((world.platform().support, world.platform().life), (SevSupport::None, Life::Ready));
    }
    // VMs that can't be looked at are nobody's to speak for.
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    world.fake.refused.insert(VmInfo::OP, Status::Denied);
    assert_eq!(world.send(vmm(0), &GuestStatus { vm }, &[]), Err(Status::NotFound));
    restarted(&mut world);
    assert_eq!(phase(&world, vm), Some(Phase::Running), "and aren't ended for that");
}

#[test]
fn a_launch_that_was_being_undone_is_undone() {
    for kind in [VmKind::Sev, VmKind::SevSnp] {
        for dies_after in 0..8 {
            let mut world = World::snp();
            let vm = world.fake.vm(0, vmm(0), kind, 1);
            let last = if kind == VmKind::Sev { mailbox::ACTIVATE } else { mailbox::SNP_ACTIVATE };
            world.fake.fault(last, Fault::Fails(Told::ResourceLimit as u16));
            let _ = match kind {
                VmKind::SevSnp => world.send(vmm(0), &snp_start(vm), &[]),
                _ => world.send(vmm(0), &LaunchStart { vm, policy: 0, owner: false }, &[]),
            };
            (0..dies_after).for_each(|_| _ = world.tick());
            restarted(&mut world);
            let asid = world.fake.asid_of(vm).unwrap();
            assert_eq!((phase(&world, vm), world.fake.row(asid).handle), (Some(Phase::Bound), 0), "{dies_after}");
            assert_eq!((world.platform().leaked_asids, world.platform().leaked_pages), (0, 0));
            let contexts = &world.fake.board.rmp[CONTEXTS as usize / 4096..];
            assert!(contexts.iter().all(|entry| entry.state() == State::Hypervisor), "{dies_after}");
            world.fake.faults.clear();
            assert_eq!(world.start(vm, kind).status, Status::Ok);
        }
    }
}

/// What a client wants in the end, whatever it has to send again for it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    Launch(VmKind),
    End(VmKind),
    Recycle(VmKind),
}

/// Reaches the goal, with the service dying after this many events. How many there were.
fn reach(goal: Goal, dies_after: usize) -> usize {
    let mut world = World::snp();
    let (kind, ends) = match goal {
        Goal::Launch(kind) => (kind, false),
        Goal::End(kind) | Goal::Recycle(kind) => (kind, true),
    };
    let others: Vec<_> =
        (1..5).filter(|_| matches!(goal, Goal::Recycle(_))).map(|slot| world.run_guest(slot, kind)).collect();
    if let Some(other) = others.get(1) {
        world.bury(*other);
    }
    let vm = if matches!(goal, Goal::End(_)) { world.run_guest(0, kind) } else { world.fake.vm(0, vmm(0), kind, 16) };
    let mut events = 0;
    let mut died = false;
    let mut live = |world: &mut World| {
        while events != dies_after || died {
            if !world.tick() {
                return true;
            }
            events += 1;
        }
        died = true;
        world.restart();
        world.pump();
        false
    };
    let snp = kind == VmKind::SevSnp;
    if !matches!(goal, Goal::End(_)) {
        loop {
            // A client that has lost its job asks how far its guest is.
            let started = world.firmware.account().guests.get(vm).is_some_and(|guest| guest.phase != Phase::Bound);
            if started {
                break;
            }
            let job = if snp {
                world.send(vmm(0), &snp_start(vm), &[])
            } else {
                let policy = if kind == VmKind::SevEs { ES_POLICY } else { 0 };
                world.send(vmm(0), &LaunchStart { vm, policy, owner: false }, &[])
            }
            .unwrap();
            if live(&mut world) {
                assert_eq!(world.result(vmm(0), job).unwrap().0.status, Status::Ok, "{goal:?} {dies_after}");
            }
        }
        assert_eq!(world.state(world.fake.asid_of(vm).unwrap()), AsidState::Active);
    }
    if matches!(goal, Goal::Launch(_)) {
        let region = RegisterRegion { vm, gfn: Gfn(0), pages: 16, known: false };
        world.send(vmm(0), &region, &[]).unwrap();
        live(&mut world);
        if !snp {
            let job = world.send(vmm(0), &LaunchUpdate { vm, gpa: Gpa(0), bytes: 0x1000 }, &[]).unwrap();
            if live(&mut world) {
                assert_eq!(world.result(vmm(0), job).unwrap().0.status, Status::Ok);
            }
            // The measurement is lost with the job that made it; that the guest is measured isn't.
            world.send(vmm(0), &LaunchMeasure { vm }, &[]).unwrap();
            live(&mut world);
            while phase(&world, vm) == Some(Phase::Measured) {
                world.send(vmm(0), &LaunchFinish { vm }, &[]).unwrap();
                live(&mut world);
            }
            assert_eq!(phase(&world, vm), Some(Phase::Running));
        }
    }
    if ends {
        world.fake.kill(vm);
        loop {
            let job = world.send(MEMORY, &Decommission { vm }, &[]).unwrap();
            if live(&mut world) {
                assert_eq!(world.result(MEMORY, job).unwrap().0.status, Status::Ok);
                break;
            }
        }
        world.fake.release(vm);
        assert!(world.fake.asid_of(vm).is_none());
    }
    world.check_quiet();
    // Nothing is lost: with everybody gone and one flush every ASID is free, and every context the host's.
    for other in world.fake.vms.iter().map(|vm| vm.id).collect::<Vec<_>>() {
        if world.fake.vm_mut(other).is_some() {
            assert_eq!(world.bury(other).status, Status::Ok);
        }
    }
    if world.fake.rows.iter().any(|row| row.state != AsidState::Free) {
        assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush }).status, Status::Ok);
    }
    assert!(world.fake.rows.iter().all(|row| (row.state, row.handle) == (AsidState::Free, 0)));
    assert!(world.fake.board.rmp[CONTEXTS as usize / 4096..].iter().all(|entry| entry.state() == State::Hypervisor));
    assert_eq!((world.platform().leaked_asids, world.platform().leaked_pages), (0, 0));
    events
}

#[test]
fn at_every_step_of_a_launch_an_end_and_a_recycling() {
    for kind in [VmKind::Sev, VmKind::SevEs, VmKind::SevSnp] {
        for goal in [Goal::Launch(kind), Goal::End(kind), Goal::Recycle(kind)] {
            let steps = reach(goal, usize::MAX);
            assert!(steps > 1, "{goal:?}");
            for dies_after in 0..steps {
                reach(goal, dies_after);
            }
        }
    }
}
