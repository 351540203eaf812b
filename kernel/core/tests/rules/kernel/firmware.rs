//! The secure processor's mailbox, and frames that are private or the processor's.

use caisson_core::context::Context;
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Frame, Gfn, Spa, VPage, VcpuId, VmId};
use caisson_proto::exits::code;
use caisson_proto::kernel::*;
use caisson_proto::mailbox;
use caisson_proto::vcpu::Action;

use super::asids::{NOBODY, asid, bind, guest, map};
use super::fake::NOT_THERE;
use super::system::{At, FIRMWARE, FRAMES, LENT, MEMORY, NOTIFIER, System, VMM};

/// Where the command's data lies: behind two frames for commands.
const DATA: u64 = 10 << 12;

fn private(vm: VmId, gfn: u64, pages: u64) -> GuestConvert {
    GuestConvert { vm, gfn: Gfn(gfn), pages, private: true, large: false }
}

#[test]
fn the_mailbox_and_asids_need_their_capability() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    for slot in [VMM, MEMORY, NOTIFIER] {
        let denied = Some(Status::Denied);
        assert_eq!(system.as_service(slot, &AsidBind { vm, asid: 3 }).err(), denied);
        assert_eq!(system.as_service(slot, &AsidInfo { asid: 3 }).err(), denied);
        assert_eq!(system.as_service(slot, &WriteBackInvalidate {}).err(), denied);
        assert_eq!(system.as_service(slot, &MailboxRing { command: mailbox::DF_FLUSH, vm }).err(), denied);
        assert_eq!(system.as_service(slot, &MailboxTake {}).err(), denied);
        assert_eq!(system.as_service(slot, &SiliconCopy { at: Spa(0), bytes: 1, write: false }).err(), denied);
    }
    assert_eq!(system.as_service(VMM, &private(vm, 0, 1)).err(), Some(Status::Denied));
}

#[test]
fn a_command_is_refused_before_anything_is_rung() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    let refused = |system: &mut System, command, vm, buffer: &[u64], status| {
        assert_eq!(system.ring_processor(command, vm, buffer), Err(status), "{command:#x} {buffer:x?}");
        assert_eq!(system.machine.mailbox.unwrap().registers[0].load(std::sync::atomic::Ordering::Relaxed) >> 31, 1);
        let report = system.as_lender(FIRMWARE, &MailboxTake {}, Some(LENT)).unwrap();
        assert_eq!(report.state, MailboxState::Idle);
    };
    for unknown in [0, 0x0b, 0x40, 0x60, 0x7ff, 0xffff] {
        refused(&mut system, unknown, vm, &[], Status::NotFound);
    }
    // A VM without an ASID, without a handle, with a handle already.
    refused(&mut system, mailbox::LAUNCH_START, vm, &[], Status::State);
    refused(&mut system, mailbox::ACTIVATE, vm, &[], Status::State);
    bind(&mut system, vm, 3).unwrap();
    refused(&mut system, mailbox::ACTIVATE, vm, &[], Status::State);
    refused(&mut system, mailbox::ACTIVATE, NOBODY, &[], Status::State);
    system.ring_processor(mailbox::LAUNCH_START, vm, &[]).unwrap();
    system.answered(0, 7);
    refused(&mut system, mailbox::LAUNCH_START, vm, &[], Status::State);
    // Guest memory that is shared, unmapped, or reaches out of its mapping.
    let update = mailbox::LAUNCH_UPDATE_DATA;
    refused(&mut system, update, vm, &[0, 0, 4096], Status::State);
    system.as_service(FIRMWARE, &private(vm, 0, 2)).unwrap();
    refused(&mut system, update, vm, &[0, 0, 0], Status::Range);
    refused(&mut system, update, vm, &[0, 0, 8192], Status::Range);
    refused(&mut system, update, vm, &[0, 0x800, 0x801], Status::Range);
    refused(&mut system, update, vm, &[0, 0x2000, 16], Status::State);
    refused(&mut system, update, vm, &[0, 0x9000, 16], Status::Range);
    refused(&mut system, update, vm, &[0, u64::MAX, 16], Status::Range);
    refused(&mut system, update, NOBODY, &[0, 0, 16], Status::State);
    // Data beyond its end; memory that isn't the processor's.
    let measure = mailbox::LAUNCH_MEASURE;
    refused(&mut system, measure, vm, &[0, mailbox::DATA_BYTES - 47, 48], Status::Range);
    refused(&mut system, measure, vm, &[0, u64::MAX, 48], Status::Range);
    refused(&mut system, mailbox::INIT, NOBODY, &[1, 1 << 20, 1 << 20], Status::State);
    refused(&mut system, mailbox::INIT, NOBODY, &[1, 512 << 12, 4096], Status::State);
    refused(&mut system, mailbox::INIT, NOBODY, &[1, (FRAMES as u64) << 12, 4096], Status::State);
    refused(&mut system, mailbox::SNP_INIT_EX, NOBODY, &[0, 1], Status::Range);
}

#[test]
fn a_lease_that_does_not_fit_rings_nothing() {
    let mut system = System::new(1);
    let ring = MailboxRing { command: mailbox::DF_FLUSH, vm: NOBODY };
    let lease = |page, pages, write| Some(Lease { page: VPage(page), pages, write });
    for bad in [None, lease(0x400, 10, true), lease(NOT_THERE.0, 1, true)] {
        assert_eq!(system.as_lender(FIRMWARE, &ring, bad).err(), Some(Status::BadLease), "{bad:?}");
    }
    system.as_lender(FIRMWARE, &ring, lease(0x400, 1, false)).unwrap();
    assert_eq!(system.as_lender(FIRMWARE, &ring, Some(LENT)).err(), Some(Status::Busy), "one at a time");
    let take = system.as_lender(FIRMWARE, &MailboxTake {}, Some(LENT)).unwrap();
    assert_eq!((take.state, take.command), (MailboxState::Busy, mailbox::DF_FLUSH), "it isn't answered");
    system.machine.answer(0);
    assert_eq!(system.as_lender(FIRMWARE, &ring, Some(LENT)).err(), Some(Status::Busy), "nor taken");
    for bad in [None, lease(0x400, 1, false)] {
        assert_eq!(system.as_lender(FIRMWARE, &MailboxTake {}, bad).err(), Some(Status::BadLease), "{bad:?}");
    }
    let take = system.as_lender(FIRMWARE, &MailboxTake {}, Some(LENT)).unwrap();
    assert_eq!((take.state, take.status), (MailboxState::Done, 0));
    let copied = system.machine.copied.borrow().last().copied();
    assert_eq!(copied, Some((0x408 << 12, Spa(0x11 << 12), 4096, true)), "the last page of data comes back");
    system.as_lender(FIRMWARE, &ring, Some(LENT)).unwrap();
}

#[test]
fn the_kernel_writes_handles_asids_and_addresses() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    bind(&mut system, vm, 4).unwrap();
    system.ring_processor(mailbox::LAUNCH_START, vm, &[0xffff_ffff_0000_1234]).unwrap();
    assert_eq!(system.machine.command()[0], 0xffff_ffff_0000_0000, "no handle, and the policy stays");
    system.answered(0, 0x1_0000_0007);
    assert_eq!(asid(&mut system, 4).handle, 7);
    system.ring_processor(mailbox::ACTIVATE, vm, &[u64::MAX]).unwrap();
    assert_eq!(system.machine.command()[0], 4 << 32 | 7);
    system.answered(0, 0);
    system.as_service(FIRMWARE, &private(vm, 1, 1)).unwrap();
    system.ring_processor(mailbox::LAUNCH_UPDATE_DATA, vm, &[0, 0x1010, 32]).unwrap();
    assert_eq!(system.machine.command()[..3], [7, 513 << 12 | 0x10, 32]);
    system.answered(0, 0);
    system.ring_processor(mailbox::LAUNCH_MEASURE, vm, &[0, 0x20, 48]).unwrap();
    assert_eq!(system.machine.command()[..3], [7, DATA + 0x20, 48]);
    system.answered(0, 0);
    system.as_service(MEMORY, &FrameDonate { frame: Frame(2048), pages: 256 }).unwrap();
    system.ring_processor(mailbox::INIT, NOBODY, &[1, 2048 << 12, 1 << 20]).unwrap();
    assert_eq!(system.machine.command()[1], 2048 << 12);
    let mailbox = system.machine.mailbox.unwrap();
    let [command, low, high] = mailbox.registers.map(|it| it.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!((command, low, high), (1 << 16 | 1, 8 << 12, 0), "with an interrupt at the end");
}

#[test]
fn a_failed_command_changes_no_table() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    bind(&mut system, vm, 3).unwrap();
    for (command, handle) in [(mailbox::LAUNCH_START, 9), (mailbox::ACTIVATE, 0), (mailbox::DEACTIVATE, 0)] {
        let before = asid(&mut system, 3);
        system.ring_processor(command, vm, &[]).unwrap();
        assert_eq!(system.answered(0xd, handle).status, 0xd);
        assert_eq!(asid(&mut system, 3), before, "{command:#x}");
        system.ring_processor(command, vm, &[]).unwrap();
        system.answered(0, handle);
        assert_ne!(asid(&mut system, 3), before, "{command:#x}");
    }
}

/// Its vmm stops a vCPU.
fn stop(system: &mut System, vcpu: VcpuId) {
    let context = Context::vcpu(vcpu.vm.index(), vcpu.index.into());
    assert_eq!(system.guest_exit(0, context, code::HLT), At::User(VMM));
    assert_eq!(system.resume(0, Action::Stop, 0), At::Idle);
}

#[test]
fn a_guest_is_neither_ended_nor_stripped_while_it_runs() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    let (vcpu, unmap) =
        (VcpuId { vm, index: 0 }, GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 1, more: false, broken: false });
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::State), "it has no ASID");
    bind(&mut system, vm, 3).unwrap();
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::State), "which isn't active");
    system.ring_processor(mailbox::LAUNCH_START, vm, &[]).unwrap();
    system.answered(0, 7);
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::State));
    system.command(mailbox::ACTIVATE, vm);
    system.as_service(VMM, &VcpuRun { vcpu }).unwrap();
    for ends in [mailbox::DEACTIVATE, mailbox::SHUTDOWN] {
        assert_eq!(system.ring_processor(ends, vm, &[]), Err(Status::Busy));
    }
    assert_eq!(system.ring_processor(mailbox::SHUTDOWN, NOBODY, &[]), Err(Status::Busy));
    stop(&mut system, vcpu);
    for (ends, of) in [(mailbox::DEACTIVATE, vm), (mailbox::SHUTDOWN, NOBODY)] {
        system.ring_processor(ends, of, &[]).unwrap();
        assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::Busy), "{ends:#x} is under way");
        assert_eq!(system.as_service(MEMORY, &unmap).err(), Some(Status::Busy), "the processor may use its pages");
        system.answered(1, 0);
    }
    system.as_service(VMM, &VcpuRun { vcpu }).unwrap();
    stop(&mut system, vcpu);
    system.command(mailbox::DEACTIVATE, vm);
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::State));
}

#[test]
fn a_page_turns_private_after_its_plain_lines_are_flushed() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    let refused = |system: &mut System, request: GuestConvert, status| {
        let before = system.as_service(MEMORY, &FrameCount {}).unwrap();
        assert_eq!(system.as_service(FIRMWARE, &request).err(), Some(status), "{request:?}");
        assert_eq!(system.as_service(MEMORY, &FrameCount {}).unwrap(), before);
        assert!(system.machine.lines.borrow().is_empty());
    };
    refused(&mut system, private(NOBODY, 0, 1), Status::Dead);
    refused(&mut system, private(vm, 0, 0), Status::Range);
    refused(&mut system, private(vm, 0, 513), Status::Range);
    refused(&mut system, private(vm, 7, 2), Status::State);
    system.as_service(MEMORY, &private(vm, 2, 2)).unwrap();
    assert_eq!(*system.machine.lines.borrow(), [(Frame(514), 1, 0), (Frame(515), 1, 0)]);
    let seen: Vec<u64> = system.machine.window.borrow().keys().map(|(_, gfn)| *gfn).collect();
    assert_eq!(seen, [0, 1, 4, 5, 6, 7], "its handler sees them no more");
    assert_eq!(system.as_service(MEMORY, &FrameCount {}).unwrap().private, 2);
    assert_eq!(system.as_service(FIRMWARE, &private(vm, 3, 1)).err(), Some(Status::State), "it is private already");
    // To memory it comes back through a batch only.
    let page = FrameRuns { from: Frame(514), most: 512 };
    let run = system.as_service(MEMORY, &page).unwrap();
    assert_eq!((run.state, run.count, run.vm), (FrameState::Private, 2, vm));
    let unmapped = system
        .as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(2), pages: 1, more: false, broken: false })
        .unwrap();
    assert_eq!(system.as_service(MEMORY, &page).unwrap().state, FrameState::Quarantined);
    system.as_service(NOTIFIER, &WriteBack { batch: unmapped.batch }).unwrap();
    assert_eq!(system.as_service(MEMORY, &page).unwrap().state, FrameState::Free);
}

#[test]
fn a_page_turns_shared_after_its_encrypted_lines_are_flushed() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    let shared = |gfn, pages| GuestConvert { private: false, ..private(vm, gfn, pages) };
    system.as_service(FIRMWARE, &private(vm, 2, 2)).unwrap();
    assert_eq!(system.as_service(FIRMWARE, &shared(2, 1)).err(), Some(Status::State), "without an ASID");
    bind(&mut system, vm, 3).unwrap();
    system.machine.lines.borrow_mut().clear();
    for (gfn, pages, status) in
        [(1, 2, Status::State), (2, 3, Status::State), (9, 1, Status::State), (2, 0, Status::Range)]
    {
        assert_eq!(system.as_service(FIRMWARE, &shared(gfn, pages)).err(), Some(status), "{gfn} {pages}");
    }
    system.ring_processor(mailbox::LAUNCH_START, vm, &[]).unwrap();
    assert_eq!(system.as_service(FIRMWARE, &shared(2, 1)).err(), Some(Status::Busy), "the processor may use it");
    system.answered(1, 0);
    assert!(system.machine.lines.borrow().is_empty());
    system.as_service(MEMORY, &shared(2, 2)).unwrap();
    assert_eq!(*system.machine.lines.borrow(), [(Frame(514), 1, 3), (Frame(515), 1, 3)]);
    let seen: Vec<u64> = system.machine.window.borrow().keys().map(|(_, gfn)| *gfn).collect();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7], "its handler sees them again");
    assert_eq!(system.as_service(MEMORY, &FrameCount {}).unwrap().private, 0);
    assert_eq!(system.as_service(FIRMWARE, &shared(2, 1)).err(), Some(Status::State), "it is shared already");
    // And there and back.
    system.as_service(FIRMWARE, &private(vm, 2, 1)).unwrap();
    system.as_service(FIRMWARE, &shared(2, 1)).unwrap();
}

#[test]
fn donated_frames_are_the_processors_for_good() {
    let mut system = System::new(1);
    let donate = |frame, pages| FrameDonate { frame: Frame(frame), pages };
    assert_eq!(system.as_service(MEMORY, &donate(8, 1)).err(), Some(Status::State));
    for pages in [0, 513, u64::MAX] {
        assert_eq!(system.as_service(MEMORY, &donate(1024, pages)).err(), Some(Status::Range));
    }
    assert_eq!(system.as_service(MEMORY, &donate(FRAMES as u64 - 1, 2)).err(), Some(Status::Range));
    system.as_service(MEMORY, &donate(1024, 256)).unwrap();
    assert_eq!(*system.machine.lines.borrow(), [(Frame(1024), 256, 0)], "no plain line is left that could be written");
    assert_eq!(system.as_service(MEMORY, &FrameCount {}).unwrap().firmware, 256);
    assert_eq!(system.as_service(MEMORY, &donate(1024, 1)).err(), Some(Status::State));
    let vm = system.vm(VMM, VmKind::Plain, 0, 64);
    assert_eq!(system.as_service(MEMORY, &map(vm, 0, 1024, 1)).err(), Some(Status::State));
}

#[test]
fn without_a_processor_there_is_no_mailbox() {
    let mut system = System::new(1);
    system.machine.mailbox = None;
    let ring = MailboxRing { command: mailbox::DF_FLUSH, vm: NOBODY };
    assert_eq!(system.as_lender(FIRMWARE, &ring, Some(LENT)).err(), Some(Status::Unsupported));
    assert_eq!(system.as_lender(FIRMWARE, &MailboxTake {}, Some(LENT)).err(), Some(Status::Unsupported));
}
