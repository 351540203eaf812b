//! SEV-SNP: whose a frame is by the RMP, contexts, what the processor has. The mailbox's own pages are in `snp_mailbox`.

use std::rc::Rc;

use caisson_core::context::Context;
use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Gfn, VcpuId, VmId};
use caisson_proto::kernel::*;
use caisson_proto::mailbox;
use caisson_proto::rmp::{Entry, IMMUTABLE, LOCKED, VALIDATED};

use super::asids::{NOBODY, asid, bind, map, wbinvd};
use super::fake::MAIL;
use super::system::{At, FIRMWARE, MEMORY, PROCESSOR, System, VMM};

/// The ASID of the guest.
pub const ASID: u32 = 1;

/// An SNP VM with an ASID and 8 pages from gfn 0 and frame 512 on.
fn guest(system: &mut System) -> VmId {
    initialise(system);
    let vm = system.vm(VMM, VmKind::SevSnp, 0, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 8)).unwrap();
    bind(system, vm, ASID).unwrap();
    vm
}

pub fn rmp(system: &System, frame: u64) -> Entry {
    system.machine.mailbox.unwrap().rmp.0.get(Frame(frame)).unwrap()
}

/// What the processor does to an entry.
pub fn processor(system: &System, frame: u64, to: Entry) {
    system.machine.mailbox.unwrap().rmp.0.set(Frame(frame), to);
}

/// The processor lets the host have a page.
pub fn release(system: &System, frame: u64) {
    processor(system, frame, Entry([rmp(system, frame).0[0] & !IMMUTABLE, 0]));
}

pub fn run(system: &mut System, frame: u64) -> FrameRun {
    system.as_service(MEMORY, &FrameRuns { from: Frame(frame), most: 512 }).unwrap()
}

pub fn private(vm: VmId, gfn: u64, pages: u64) -> GuestConvert {
    GuestConvert { vm, gfn: Gfn(gfn), pages, private: true, large: false }
}

/// The processor is asked to fill a page.
fn fill(system: &mut System, vm: VmId, gpa: u64) -> Result<(), Status> {
    system.ring_processor(mailbox::SNP_LAUNCH_UPDATE, vm, &[0, 0, gpa])
}

#[test]
fn a_private_page_is_its_guests_by_the_rmp() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 0, 3)).unwrap();
    let entries = |system: &System| (512..516).map(|frame| rmp(system, frame)).collect::<Vec<_>>();
    let assigned = |gfn, fill| Entry::guest(ASID, Gfn(gfn), fill);
    assert_eq!(entries(&system), [assigned(0, false), assigned(1, false), assigned(2, false), Entry::SHARED]);
    // Its processor is to fill one, which has to be whole and private.
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    for (gpa, status) in [(0x3000, Status::State), (0x1001, Status::Range), (0x9000, Status::Range)] {
        assert_eq!(fill(&mut system, vm, gpa), Err(status), "{gpa:#x}");
    }
    fill(&mut system, vm, 0x1000).unwrap();
    assert_eq!(system.machine.command()[2], 513 << 12);
    system.answered(0x1a, 0);
    assert_eq!(entries(&system), [assigned(0, false), assigned(1, true), assigned(2, false), Entry::SHARED]);
    assert_eq!(fill(&mut system, vm, 0x1000), Err(Status::State), "it is the processor's until it is reclaimed");
}

#[test]
fn without_an_asid_nothing_turns() {
    let mut system = System::new(1);
    initialise(&mut system);
    let vm = system.vm(VMM, VmKind::SevSnp, 0, 64);
    system.as_service(MEMORY, &map(vm, 512, 1024, 512)).unwrap();
    assert_eq!(system.as_service(FIRMWARE, &private(vm, 512, 1)).err(), Some(Status::State));
    assert_eq!(rmp(&system, 1024), Entry::SHARED);
}

#[test]
fn what_the_rmp_refuses_stays_as_it_is() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    processor(&system, 513, Entry::FIRMWARE);
    assert_eq!(system.as_service(FIRMWARE, &private(vm, 0, 3)).err(), Some(Status::State));
    let states: Vec<FrameState> = (512..515).map(|frame| run(&mut system, frame).state).collect();
    assert_eq!(states, [FrameState::Private, FrameState::Owned, FrameState::Owned]);
    assert_eq!(rmp(&system, 514), Entry::SHARED);
}

#[test]
fn a_freed_page_is_the_hosts_first_and_flushed_then() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 0, 2)).unwrap();
    let Entry([low, _]) = rmp(&system, 512);
    processor(&system, 512, Entry([low | VALIDATED, 0xf]));
    system.machine.lines.borrow_mut().clear();
    let unmapped = system
        .as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 3, more: false, broken: false })
        .unwrap();
    assert_eq!(unmapped.pages, 3);
    assert_eq!(*system.machine.lines.borrow(), [(Frame(512), 1, ASID), (Frame(513), 1, ASID)], "under its own alias");
    assert!((512..515).all(|frame| rmp(&system, frame) == Entry::SHARED));
    let report = system.as_service(MEMORY, &BatchInfo { slot: unmapped.batch.0 as u16 }).unwrap();
    assert_eq!((report.frames, report.owed), (3, 0), "no CPU owes a write-back");
}

#[test]
fn a_page_turns_shared_when_the_rmp_says_so() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 0, 3)).unwrap();
    processor(&system, 513, Entry([rmp(&system, 513).0[0] | IMMUTABLE, 0]));
    system.machine.lines.borrow_mut().clear();
    let shared = GuestConvert { private: false, ..private(vm, 0, 3) };
    assert_eq!(system.as_service(FIRMWARE, &shared).err(), Some(Status::State));
    assert_eq!(
        [512, 513, 514].map(|frame| run(&mut system, frame).state),
        [FrameState::Owned, FrameState::Private, FrameState::Private]
    );
    assert_eq!(rmp(&system, 512), Entry::SHARED);
    assert_eq!(*system.machine.lines.borrow(), [(Frame(512), 1, ASID)]);
    let seen: Vec<u64> = system.machine.window.borrow().keys().map(|(_, gfn)| *gfn).collect();
    assert_eq!(seen, [0, 3, 4, 5, 6, 7], "its handler sees nothing of the rest");
}

#[test]
fn who_could_reach_a_page_is_gone_before_it_is_flushed_and_then_others_come() {
    let mut system = System::new(2);
    initialise(&mut system);
    let vm = system.vm(VMM, VmKind::SevSnp, 2, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 8)).unwrap();
    bind(&mut system, vm, ASID).unwrap();
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    system.command(mailbox::SNP_ACTIVATE, vm);
    let context = Context::vcpu(vm.index(), 1);
    system.run(VMM, VcpuId { vm, index: 1 });
    assert_eq!(system.pick(1), At::Guest(context));
    assert!(system.here(1).entering(context));
    system.machine.did.take();
    system.as_service(FIRMWARE, &private(vm, 0, 2)).unwrap();
    assert_eq!(system.machine.did.take(), ["hidden", "host's translations", "lines", "RMP", "lines", "RMP"]);
    let kernel = Rc::clone(&system.kernel);
    *system.machine.meanwhile.borrow_mut() = Some(Box::new(move || kernel.context(context).leave()));
    system.as_service(FIRMWARE, &GuestConvert { private: false, ..private(vm, 0, 2) }).unwrap();
    assert_eq!(system.machine.did.take(), ["RMP", "RMP", "waited", "lines", "lines", "shown", "shown"]);
}

#[test]
fn a_page_that_the_processor_keeps_is_leaked_and_counted() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 0, 2)).unwrap();
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    fill(&mut system, vm, 0).unwrap();
    system.answered(0x1a, 0);
    let before = system.as_service(MEMORY, &FrameCount {}).unwrap();
    let unmapped = system
        .as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 2, more: false, broken: false })
        .unwrap();
    assert_eq!(unmapped.pages, 2);
    let after = system.as_service(MEMORY, &FrameCount {}).unwrap();
    assert_eq!((after.private, after.leaked, after.quarantined), (0, before.leaked + 1, before.quarantined + 1));
    assert_eq!(run(&mut system, 512).state, FrameState::Leaked);
    assert_eq!(run(&mut system, 513).state, FrameState::Quarantined);
}

#[test]
fn a_context_is_a_frame_of_the_vms_own_and_comes_back() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    let sev = system.vm(VMM, VmKind::Sev, 0, 128);
    bind(&mut system, sev, 3).unwrap();
    system.command(mailbox::SNP_SHUTDOWN_EX, NOBODY);
    assert_eq!(
        system.ring_processor(mailbox::SNP_GCTX_CREATE, vm, &[]),
        Err(Status::State),
        "nobody could give it back"
    );
    system.command(mailbox::SNP_INIT_EX, NOBODY);
    let create = mailbox::SNP_GCTX_CREATE;
    for (command, of) in [(create, sev), (create, NOBODY), (mailbox::LAUNCH_START, vm), (mailbox::SNP_LAUNCH_START, vm)]
    {
        assert_eq!(system.ring_processor(command, of, &[]), Err(Status::State), "{command:#x}");
    }
    let before = system.as_service(MEMORY, &VmInfo { slot: 0 }).unwrap();
    system.ring_processor(create, vm, &[0x1234_5000]).unwrap();
    let context = system.machine.command()[0] >> 12;
    assert_eq!(system.answered(0, 0).status, 0);
    assert_eq!(rmp(&system, context), Entry::FIRMWARE);
    let frame = run(&mut system, context);
    assert_eq!((frame.state, frame.count, frame.vm), (FrameState::Firmware, 1, vm));
    assert_eq!(asid(&mut system, ASID).handle, context << 12, "the processor knows it now");
    let after = system.as_service(MEMORY, &VmInfo { slot: 0 }).unwrap();
    assert_eq!(after.kernel_frames + 1, before.kernel_frames);
    assert_eq!(system.ring_processor(create, vm, &[]), Err(Status::State), "it has one");
    // It can't be named as memory that was donated.
    assert_eq!(system.ring_processor(mailbox::INIT, NOBODY, &[1, context << 12, 4096]), Err(Status::State));
    system.ring_processor(mailbox::SNP_LAUNCH_START, vm, &[7]).unwrap();
    assert_eq!(system.machine.command()[0], context << 12);
    system.answered(0, 0);
    system.command(mailbox::SNP_DECOMMISSION, vm);
    assert_eq!(asid(&mut system, ASID).handle, context << 12 | FORGOTTEN);
    assert_eq!(system.ring_processor(mailbox::SNP_DECOMMISSION, vm, &[]), Err(Status::State), "it is over");
    // While the processor has it, an answer of success doesn't make it the host's.
    system.command(mailbox::SNP_PAGE_RECLAIM, vm);
    assert_eq!(run(&mut system, context).state, FrameState::Firmware);
    release(&system, context);
    system.machine.lines.borrow_mut().clear();
    system.command(mailbox::SNP_PAGE_RECLAIM, vm);
    assert_eq!(*system.machine.lines.borrow(), [(Frame(context), 1, 0)]);
    assert_eq!((run(&mut system, context).state, rmp(&system, context)), (FrameState::Free, Entry::SHARED));
    assert_eq!(asid(&mut system, ASID).handle, 0);
    assert_eq!(system.ring_processor(mailbox::SNP_PAGE_RECLAIM, vm, &[]), Err(Status::NotFound));
}

#[test]
fn a_context_outlives_its_vm() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    let context = asid(&mut system, ASID).handle >> 12;
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    system.as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 8, more: false, broken: false }).unwrap();
    system.as_service(MEMORY, &VmRelease { vm }).unwrap();
    assert_eq!(run(&mut system, context).state, FrameState::Firmware);
    system.command(mailbox::SNP_DECOMMISSION, vm);
    release(&system, context);
    system.command(mailbox::SNP_PAGE_RECLAIM, vm);
    assert_eq!(run(&mut system, context).state, FrameState::Free);
}

#[test]
fn a_guests_page_is_reclaimed_by_its_guest_address() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 3, 1)).unwrap();
    let reclaim = |system: &mut System, given| system.ring_processor(mailbox::SNP_PAGE_RECLAIM, vm, &[given]);
    for (given, status) in [(3, Status::Range), (0x3003, Status::Range), (2, Status::State), (0x9002, Status::Range)] {
        assert_eq!(reclaim(&mut system, given), Err(status), "{given:#x}");
    }
    reclaim(&mut system, 0x3000 | mailbox::RECLAIM_GUEST).unwrap();
    assert_eq!(system.machine.command()[0], 515 << 12, "a page of 4 KiB");
    system.answered(0, 0);
    assert_eq!(rmp(&system, 515), Entry::guest(ASID, Gfn(3), false), "it stays its guest's");
    // Who died while the processor filled a page gets it back, too.
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    processor(&system, 515, Entry([rmp(&system, 515).0[0] | IMMUTABLE, 0]));
    reclaim(&mut system, 0x3000 | mailbox::RECLAIM_GUEST).unwrap();
    release(&system, 515);
    system.answered(0, 0);
    system.as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 8, more: false, broken: false }).unwrap();
    assert_eq!(run(&mut system, 515).state, FrameState::Quarantined);
}

/// SNP is initialised, and no ASID waits for a flush.
pub fn initialise(system: &mut System) {
    system.command(mailbox::SNP_INIT_EX, NOBODY);
    wbinvd(system);
    system.command(mailbox::SNP_DF_FLUSH, NOBODY);
}

pub fn initialised() -> System {
    let mut system = System::new(1);
    initialise(&mut system);
    system
}

#[test]
fn donated_frames_are_the_processors_by_the_rmp() {
    let mut system = initialised();
    processor(&system, 1030, Entry([LOCKED, 0]));
    system.as_service(MEMORY, &FrameDonate { frame: Frame(1024), pages: 8 }).unwrap();
    assert_eq!(rmp(&system, 1024), Entry::FIRMWARE);
    let counts = system.as_service(MEMORY, &FrameCount {}).unwrap();
    assert_eq!(counts.firmware, 7);
    assert_eq!(run(&mut system, 1030).state, FrameState::Leaked, "what the RMP refuses is nobody's");
}

#[test]
fn a_processor_that_begins_anew_has_nothing() {
    let mut system = initialised();
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 0, 1)).unwrap();
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    let context = asid(&mut system, ASID).handle >> 12;
    system.command(mailbox::SNP_PLATFORM_STATUS, NOBODY);
    assert_eq!(rmp(&system, MAIL.0 + 1), Entry::FIRMWARE);
    system.awake(0, PROCESSOR);
    let at = system.exit(0, 0);
    system.drain(0, at);
    system.here(0).restart(PROCESSOR).unwrap();
    let at = system.pick(0);
    assert_eq!(at, super::system::At::User(PROCESSOR));
    system.drain(0, at);
    for frame in [MAIL.0 + 1, context, 512] {
        assert_eq!(rmp(&system, frame), Entry::SHARED);
    }
    // The mailbox is the host's, though nobody reclaimed it; a context comes back whatever is answered.
    system.command(mailbox::PLATFORM_STATUS, NOBODY);
    assert_eq!(rmp(&system, MAIL.0 + 1), Entry::SHARED);
    system.ring_processor(mailbox::SNP_PAGE_RECLAIM, vm, &[]).unwrap();
    system.answered(1, 0);
    assert_eq!(run(&mut system, context).state, FrameState::Free);
}

#[test]
fn a_shutdown_keeps_in_mind_which_context_is_to_come_back() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    let context = asid(&mut system, ASID).handle >> 12;
    system.command(mailbox::SNP_SHUTDOWN_EX, NOBODY);
    assert_eq!(asid(&mut system, ASID).handle, context << 12 | FORGOTTEN);
    initialise(&mut system);
    // No VM takes one frame after the other.
    assert_eq!(system.ring_processor(mailbox::SNP_GCTX_CREATE, vm, &[]), Err(Status::State));
    processor(&system, context, Entry::SHARED);
    system.ring_processor(mailbox::SNP_PAGE_RECLAIM, vm, &[]).unwrap();
    system.answered(0x1a, 0);
    assert_eq!((run(&mut system, context).state, asid(&mut system, ASID).handle), (FrameState::Free, 0));
    system.command(mailbox::SNP_GCTX_CREATE, vm);
}

#[test]
fn an_asid_that_was_given_up_assigns_nothing() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.command(mailbox::SNP_GCTX_CREATE, vm);
    system.command(mailbox::SNP_ACTIVATE, vm);
    system.command(mailbox::SNP_DECOMMISSION, vm);
    assert_eq!(system.as_service(FIRMWARE, &private(vm, 0, 1)).err(), Some(Status::State));
    assert_eq!(rmp(&system, 512), Entry::SHARED);
}
