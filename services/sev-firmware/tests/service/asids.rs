//! ASIDs: given in order, recycled when none is free, never lost and never given twice.

use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::{CpuId, Tsc};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, Features, Machine, VmKind};
use caisson_proto::mailbox;
use caisson_qemu_psp::Status as Told;
use caisson_sev_firmware::{Firmware, Note, WRITE_BACK_MS};

use crate::kernel::{Event, Fake, Fault};
use crate::world::*;

const FLUSH: [Event; 2] = [Event::Wbinvd, Event::Command(mailbox::DF_FLUSH, 0)];

/// As many running SEV guests as there are ASIDs for them.
fn full() -> (World, Vec<caisson_proto::addr::VmId>) {
    let mut world = World::sev();
    let vms = (0..4).map(|slot| world.run_guest(slot, VmKind::Sev)).collect();
    world.fake.log.clear();
    (world, vms)
}

#[test]
fn the_lowest_of_the_class_comes_first_and_nothing_is_flushed_for_it() {
    let mut world = World::sev();
    for (slot, kind, asid) in
        [(0, VmKind::Sev, 5), (1, VmKind::SevEs, 1), (2, VmKind::Sev, 6), (3, VmKind::SevEs, 2), (4, VmKind::Sev, 7)]
    {
        let (vm, _) = world.launch(slot, kind);
        assert_eq!(world.fake.asid_of(vm), Some(asid));
    }
    assert!(!world.fake.log.contains(&Event::Wbinvd));
    // One that was given up is dirty: the next is a higher one, as long as there is one.
    let second = world.fake.vms[2].id;
    world.bury(second);
    let (vm, _) = world.launch(5, VmKind::Sev);
    assert_eq!((world.fake.asid_of(vm), world.state(6)), (Some(8), AsidState::Dirty));
    assert!(!world.fake.log.contains(&Event::Wbinvd));
}

#[test]
fn one_flush_at_the_moment_when_none_is_free_recycles_both_classes() {
    let (mut world, vms) = full();
    let es = world.run_guest(9, VmKind::SevEs);
    world.bury(es);
    world.bury(vms[2]);
    world.bury(vms[0]);
    world.fake.log.clear();
    let (vm, report) = world.launch(4, VmKind::Sev);
    assert_eq!((report.status, world.fake.asid_of(vm)), (Status::Ok, Some(5)));
    let rest = [mailbox::LAUNCH_START, mailbox::ACTIVATE].map(|number| Event::Command(number, 0));
    assert_eq!(world.events(), [FLUSH, rest].concat());
    assert_eq!((world.state(1), world.state(7)), (AsidState::Free, AsidState::Free));
    // The next one needs none.
    assert_eq!(world.launch(5, VmKind::Sev).1.status, Status::Ok);
    assert_eq!(world.events(), rest);
    assert_eq!(world.platform().flushes, 2);
}

#[test]
fn nothing_to_reclaim_in_the_class_is_busy_and_nothing_happens() {
    let (mut world, _) = full();
    // The other class has some.
    let es = world.run_guest(9, VmKind::SevEs);
    world.bury(es);
    world.fake.log.clear();
    let (rows, account) = (world.fake.rows.clone(), world.firmware.account().clone());
    let (vm, report) = world.launch(4, VmKind::Sev);
    assert_eq!((report.status, report.cause), (Status::Busy, Cause::Service));
    assert_eq!((world.events(), world.fake.asid_of(vm)), (vec![], None));
    assert_eq!((&world.fake.rows, world.firmware.account()), (&rows, &account));
}

#[test]
fn a_failed_flush_changes_nothing_to_the_bit() {
    let (mut world, vms) = full();
    world.bury(vms[1]);
    for fault in [Told::HardwareErrorPlatform, Told::WbinvdRequired, Told::InvalidPlatformState] {
        let account = world.firmware.account().clone();
        let held: Vec<_> = world.fake.rows.iter().map(|row| (row.vm, row.handle)).collect();
        world.fake.fault(mailbox::DF_FLUSH, Fault::Fails(fault as u16));
        world.fake.log.clear();
        let (vm, report) = world.launch(4, VmKind::Sev);
        assert_eq!((report.status, report.cause, report.firmware), (Status::Busy, Cause::Processor, fault as u16));
        assert_eq!(report.command, mailbox::DF_FLUSH);
        assert_eq!(world.events(), [Event::Wbinvd, Event::Command(mailbox::DF_FLUSH, fault as u16)]);
        assert_eq!(world.firmware.account(), &account);
        assert_eq!(world.fake.rows.iter().map(|row| (row.vm, row.handle)).collect::<Vec<_>>(), held);
        // Reclaimable as it was, and nobody's.
        assert_eq!((world.state(6), world.fake.asid_of(vm)), (AsidState::Flushed, None));
        world.fake.release(vm);
    }
    // The first failure's write-back isn't believed: everything anew.
    world.fake.log.clear();
    assert_eq!(world.launch(4, VmKind::Sev).1.status, Status::Ok);
    assert_eq!(world.events()[..2], FLUSH);
}

#[test]
fn an_end_that_comes_between_the_flushes_waits() {
    let (mut world, vms) = full();
    world.bury(vms[0]);
    world.fake.log.clear();
    let vm = world.fake.vm(4, vmm(4), VmKind::Sev, 16);
    let launch = world.send(vmm(4), &LaunchStart { vm, policy: 0, owner: false }, &[]).unwrap();
    // WBINVD is under way; and then it is done and DF_FLUSH is.
    let first = world.send(MEMORY, &Decommission { vm: vms[1] }, &[]).unwrap();
    assert_eq!(world.state(6), AsidState::Active);
    assert!(world.tick());
    assert_eq!(world.fake.log, [Event::Wbinvd]);
    let second = world.send(MEMORY, &Decommission { vm: vms[2] }, &[]).unwrap();
    assert_eq!((world.state(6), world.state(7)), (AsidState::Active, AsidState::Active));
    world.pump();
    let rest = [
        mailbox::LAUNCH_START,
        mailbox::ACTIVATE,
        mailbox::DEACTIVATE,
        mailbox::DECOMMISSION,
        mailbox::DEACTIVATE,
        mailbox::DECOMMISSION,
    ];
    assert_eq!(world.events(), [&FLUSH[..], &rest.map(|number| Event::Command(number, 0))].concat());
    for (client, job) in [(vmm(4), launch), (MEMORY, first), (MEMORY, second)] {
        assert_eq!(world.result(client, job).unwrap().0.status, Status::Ok);
    }
    // What was given up after the flush isn't free.
    assert_eq!((world.state(6), world.state(7)), (AsidState::Dirty, AsidState::Dirty));
}

#[test]
fn a_vm_that_dies_between_the_flushes_makes_the_kernel_refuse_the_second() {
    let (mut world, vms) = full();
    world.bury(vms[0]);
    // One that was bound and came no further.
    let other = world.fake.vm(9, vmm(9), VmKind::SevEs, 1);
    world.fake.fault(mailbox::LAUNCH_START, Fault::Fails(Told::PolicyFailure as u16));
    assert_eq!(world.start(other, VmKind::SevEs).status, Status::Denied);
    world.fake.log.clear();
    let vm = world.fake.vm(4, vmm(4), VmKind::Sev, 16);
    let job = world.send(vmm(4), &LaunchStart { vm, policy: 0, owner: false }, &[]).unwrap();
    world.fake.kill(other);
    world.fake.release(other);
    world.pump();
    let (report, _) = world.result(vmm(4), job).unwrap();
    assert_eq!((report.status, report.cause, report.command), (Status::Busy, Cause::Kernel, mailbox::DF_FLUSH));
    assert_eq!(world.events(), [Event::Wbinvd]);
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
}

#[test]
fn a_cpu_that_completes_no_wbinvd_is_named() {
    let (mut world, vms) = full();
    world.bury(vms[0]);
    world.fake.log.clear();
    world.fake.late = Some(CpuId(2));
    let vm = world.fake.vm(4, vmm(4), VmKind::Sev, 16);
    let job = world.send(vmm(4), &LaunchStart { vm, policy: 0, owner: false }, &[]).unwrap();
    world.pump();
    world.elapse(WRITE_BACK_MS - 1);
    assert_eq!(world.result(vmm(4), job).unwrap().0.state, JobState::Running);
    world.elapse(1);
    let (report, _) = world.result(vmm(4), job).unwrap();
    assert_eq!((report.status, report.cause, report.done), (Status::Busy, Cause::Kernel, 2));
    assert!(world.fake.notes.contains(&Note::Late(CpuId(2))));
    assert_eq!((world.events(), world.state(5), world.platform().life), (vec![], AsidState::Dirty, Life::Ready));
    // It comes back, and so does the ASID.
    world.fake.late = None;
    world.pump();
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
}

#[test]
fn a_guest_that_isnt_forgotten_takes_its_asid_along() {
    for (command, left) in [(mailbox::DEACTIVATE, AsidState::Active), (mailbox::DECOMMISSION, AsidState::Dirty)] {
        let (mut world, vms) = full();
        world.fake.fault(command, Fault::Fails(Told::HardwareErrorUnsafe as u16));
        let report = world.bury(vms[3]);
        assert_eq!((report.cause, report.command, report.firmware), (Cause::Processor, command, 0x14));
        assert_eq!((world.state(8), world.platform().leaked_asids), (left, 1));
        assert!(world.fake.notes.contains(&Note::LeakedAsid(8)));
        // Nothing else is reclaimable: not even a flush is tried for it.
        world.fake.log.clear();
        let (_, report) = world.launch(4, VmKind::Sev);
        assert_eq!((report.status, report.cause, world.events()), (Status::Busy, Cause::Service, vec![]));
        // With another it is passed over, though the kernel's table may have it free by then.
        world.bury(vms[2]);
        let (_, report) = world.launch(5, VmKind::Sev);
        assert_eq!(report.status, Status::Ok);
        let (_, report) = world.launch(6, VmKind::Sev);
        assert_eq!(report.status, Status::Busy);
        world.check_quiet();
        // Whoever asks again is told that nothing is left to do.
        assert_eq!(world.platform().leaked_asids, 1);
    }
}

#[test]
fn an_asid_that_the_processor_holds_for_another_is_passed_over_from_then_on() {
    for told in [Told::AsidOwned, Told::InvalidAsid] {
        let mut world = World::sev();
        let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
        world.fake.fault(mailbox::ACTIVATE, Fault::Fails(told as u16));
        let report = world.start(vm, VmKind::Sev);
        assert_eq!((report.cause, report.firmware), (Cause::Processor, told as u16));
        assert_eq!(world.platform().leaked_asids, 1);
        // For this VM there is no other; the next one isn't bothered.
        assert_eq!(world.start(vm, VmKind::Sev).status, Status::State);
        world.bury(vm);
        let (other, report) = world.launch(1, VmKind::Sev);
        assert_eq!((report.status, world.fake.asid_of(other)), (Status::Ok, Some(6)));
    }
}

#[test]
fn a_processor_that_never_has_enough_is_asked_twice() {
    let mut world = World::sev();
    let owed = Fault::Fails(Told::WbinvdRequired as u16);
    world.fake.faults.entry(mailbox::ACTIVATE).or_default().extend([owed, owed]);
    let (_, report) = world.launch(0, VmKind::Sev);
    assert_eq!((report.status, report.firmware), (Status::Busy, Told::WbinvdRequired as u16));
    assert_eq!(world.fake.log.iter().filter(|event| **event == Event::Wbinvd).count(), 1);
    assert_eq!(world.fake.row(5).handle, 0, "the handle was given back");
}

#[test]
fn a_flush_that_succeeds_in_words_only_is_found_out() {
    let (mut world, vms) = full();
    world.bury(vms[0]);
    world.fake.fault(mailbox::DF_FLUSH, Fault::Fails(0));
    world.fake.log.clear();
    let (_, report) = world.launch(4, VmKind::Sev);
    // One flush was done for this job already; the launch fails, and nothing is left of it.
    assert_eq!((report.status, report.firmware), (Status::Busy, Told::DfFlushRequired as u16));
    world.check();
    assert_eq!(world.platform().leaked_asids, 0);
}

#[test]
fn bells_that_mean_nothing_change_nothing() {
    let (mut world, vms) = full();
    world.bury(vms[0]);
    let vm = world.fake.vm(4, vmm(4), VmKind::Sev, 16);
    world.send(vmm(4), &LaunchStart { vm, policy: 0, owner: false }, &[]).unwrap();
    let account = world.firmware.account().clone();
    let (rows, log) = (world.fake.rows.clone(), world.fake.log.clone());
    for bits in [0, 1, doorbell::TICKET, doorbell::INTERRUPT, doorbell::TIMER, doorbell::VM_GONE, u64::MAX] {
        world.firmware.doorbell(bits, Tsc(world.fake.now), &mut world.fake);
        assert_eq!((world.firmware.account(), &world.fake.rows, &world.fake.log), (&account, &rows, &log));
    }
    assert_ne!(world.fake.timer, 0, "and the timer is set again");
    world.pump();
    assert_eq!(world.fake.asid_of(vm), Some(5));
}

#[test]
fn a_class_without_asids_is_busy() {
    // SEV from 1 on: none for SEV-ES. SEV from beyond the last on: none for SEV. And what no CPU says.
    for (sev_asids, kinds) in [
        (1 << 16 | 8, &[VmKind::SevEs, VmKind::SevSnp][..]),
        (9 << 16 | 8, &[VmKind::Sev]),
        (5 << 16, &[VmKind::Sev, VmKind::SevEs]),
        (0, &[VmKind::Sev, VmKind::SevEs, VmKind::SevSnp]),
    ] {
        let mut world = World::snp();
        world.fake.again = false;
        *world.firmware = Firmware::new();
        let machine = Machine { sev_asids, ..Fake::machine(Features::SEV) };
        world.firmware.start(&machine, &[3, 4], Tsc(world.fake.now), &mut world.fake);
        world.pump();
        world.fake.log.clear();
        for (slot, kind) in (0..).zip(kinds) {
            let (vm, report) = world.launch(slot, *kind);
            assert_eq!((report.status, report.cause), (Status::Busy, Cause::Service), "{sev_asids:#x} {kind:?}");
            assert_eq!(world.fake.asid_of(vm), None);
        }
        assert_eq!(world.events(), []);
    }
    // More than there can be: the table ends where it ends.
    let mut world = World::sev();
    *world.firmware = Firmware::new();
    let machine = Machine { sev_asids: 0x0005_ffff, ..Fake::machine(Features::SEV) };
    world.firmware.start(&machine, &[3, 4], Tsc(world.fake.now), &mut world.fake);
    world.pump();
    let launched = (0..5).map(|slot| world.launch(slot, VmKind::Sev).1.status).collect::<Vec<_>>();
    assert_eq!(launched, [Status::Ok, Status::Ok, Status::Ok, Status::Ok, Status::Busy]);
}
