//! What an ASID owes before somebody else may have it.

mod common;

use caisson_qemu_psp::{Command, Fault, Status};
use common::*;

fn activate(rig: &mut Rig, handle: u32, asid: u32) -> Status {
    rig.run(Command::Activate, &words(&[handle, asid])).0
}

#[test]
fn the_first_activation_needs_both_flushes() {
    let mut rig = Rig::new();
    assert_eq!(rig.run(Command::Init, &init(1, 8 << 20, 1 << 20)).0, Status::Success);
    let handle = rig.start(0);
    assert_eq!(activate(&mut rig, handle, 5), Status::WbinvdRequired);
    assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::WbinvdRequired);
    rig.machine.wbinvd();
    assert_eq!(activate(&mut rig, handle, 5), Status::DfFlushRequired);
    assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::Success);
    assert_eq!(activate(&mut rig, handle, 5), Status::Success);
}

#[test]
fn wbinvd_before_init_doesnt_count() {
    let mut rig = Rig::new();
    rig.machine.wbinvd();
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::WbinvdRequired);
}

#[test]
fn one_cpu_that_is_missing_is_enough() {
    for missing in 0..4 {
        let mut rig = Rig::initialised();
        let handle = rig.guest(0, 5);
        assert_eq!(rig.simple(Command::Deactivate, handle), Status::Success);
        for cpu in (0..4).filter(|cpu| *cpu != missing) {
            rig.machine.cpus[cpu].wbinvds += 1;
            assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::WbinvdRequired);
        }
        assert_eq!(activate(&mut rig, handle, 5), Status::WbinvdRequired);
        // That others wrote back more than once doesn't help.
        rig.machine.cpus[(missing + 1) % 4].wbinvds += 7;
        assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::WbinvdRequired);
        rig.machine.cpus[missing].wbinvds += 1;
        assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::Success);
        assert_eq!(activate(&mut rig, handle, 5), Status::Success);
    }
}

#[test]
fn a_deactivation_between_the_flushes_undoes_the_first() {
    let mut rig = Rig::initialised();
    let (one, two) = (rig.guest(0, 5), rig.guest(0, 6));
    assert_eq!(rig.simple(Command::Deactivate, one), Status::Success);
    rig.machine.wbinvd();
    assert_eq!(rig.simple(Command::Deactivate, two), Status::Success);
    assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::WbinvdRequired);
    // The first one's write-back counts still: only DF_FLUSH is missing.
    assert_eq!(activate(&mut rig, one, 5), Status::DfFlushRequired);
    assert_eq!(activate(&mut rig, one, 6), Status::WbinvdRequired);
    rig.flush();
    assert_eq!(activate(&mut rig, one, 6), Status::Success);
    assert_eq!(activate(&mut rig, two, 5), Status::Success);
}

#[test]
fn a_clean_asid_needs_no_flush_of_others() {
    let mut rig = Rig::initialised();
    let one = rig.guest(0, 5);
    assert_eq!(rig.simple(Command::Deactivate, one), Status::Success);
    assert_eq!(activate(&mut rig, one, 6), Status::Success);
}

#[test]
fn a_failed_flush_changes_nothing() {
    let mut rig = Rig::initialised();
    let handle = rig.guest(0, 5);
    assert_eq!(rig.simple(Command::Deactivate, handle), Status::Success);
    rig.machine.wbinvd();
    rig.machine.fabric = Err(Fault);
    assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::HardwareErrorPlatform);
    assert_eq!(activate(&mut rig, handle, 5), Status::DfFlushRequired);
    rig.machine.fabric = Ok(());
    assert_eq!(rig.run(Command::DfFlush, &[]).0, Status::Success);
    assert_eq!(activate(&mut rig, handle, 5), Status::Success);
}

#[test]
fn classes_keep_to_their_asids() {
    // The board has SEV-ES from 1 to 4 and SEV from 5 to 8.
    let mut rig = Rig::initialised();
    for (policy, good) in [(0, 5..=8), (4, 1..=4)] {
        let handle = rig.start(policy);
        for asid in (0..=12).chain([0x104, 0x1_0005, u32::MAX]) {
            let expected = if good.contains(&asid) { Status::Success } else { Status::InvalidAsid };
            assert_eq!(activate(&mut rig, handle, asid), expected, "policy {policy}, ASID {asid}");
            if expected == Status::Success {
                assert_eq!(activate(&mut rig, handle, asid), Status::Active);
                assert_eq!(rig.simple(Command::Deactivate, handle), Status::Success);
            }
        }
    }
}

#[test]
fn an_asid_has_one_guest() {
    let mut rig = Rig::initialised();
    let (one, two) = (rig.guest(0, 5), rig.start(0));
    assert_eq!(activate(&mut rig, two, 5), Status::AsidOwned);
    assert_eq!(activate(&mut rig, one, 6), Status::Active);
    assert_eq!(rig.simple(Command::Decommission, one), Status::Active);
    assert_eq!(rig.simple(Command::Deactivate, one), Status::Success);
    assert_eq!(rig.simple(Command::Deactivate, one), Status::Success, "without effect");
    assert_eq!(rig.simple(Command::Decommission, one), Status::Success);
    for command in [Command::Deactivate, Command::Decommission] {
        assert_eq!(rig.simple(command, one), Status::InvalidGuest);
    }
    assert_eq!(activate(&mut rig, one, 6), Status::InvalidGuest);
}

#[test]
fn shutdown_gives_up_all() {
    let mut rig = Rig::initialised();
    let handle = rig.guest(0, 5);
    assert_eq!(rig.run(Command::Shutdown, &[]).0, Status::Success);
    assert!(rig.machine.keys.is_empty());
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    assert_eq!(activate(&mut rig, handle, 6), Status::InvalidGuest);
    let handle = rig.start(0);
    assert_eq!(activate(&mut rig, handle, 6), Status::WbinvdRequired);
}

#[test]
fn guests_end_where_the_table_does_and_come_again() {
    let mut rig = Rig::initialised();
    let handles: Vec<_> = (0..64).map(|_| rig.start(0)).collect();
    assert_eq!(rig.run(Command::LaunchStart, &launch_start(0)).0, Status::ResourceLimit);
    assert_eq!(rig.status(), (2, 64, 0x100));
    assert_eq!(rig.simple(Command::Decommission, handles[3]), Status::Success);
    let new = rig.start(0);
    assert!(!handles.contains(&new), "a dead handle isn't used again");
}
