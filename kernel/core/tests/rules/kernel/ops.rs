//! Operations on frames, VMs and batches: every refusal, and that nothing has changed after one.

use caisson_core::context::Context;
use caisson_proto::abi::{MAX_VCPUS, Status};
use caisson_proto::addr::{BatchId, CpuId, Frame, Gfn, Sequence, Ticket, Tsc, VcpuId, VmId};
use caisson_proto::kernel::*;
use caisson_proto::layout;

use super::system::{At, FIRMWARE, FRAMES, KERNEL_FRAMES, MEMORY, NOTIFIER, SERVICES, SUPERVISOR, System, VMM};

const NOBODY: VmId = VmId::new(9, 0);

fn map(vm: VmId, gfn: u64, frame: u64, pages: u64) -> GuestMap {
    let access = Access::READ | Access::WRITE;
    GuestMap { vm, view: 0, gfn: Gfn(gfn), frame: Frame(frame), pages, access, sequence: Sequence(0) }
}

fn unmap(vm: VmId, gfn: u64, pages: u64) -> GuestUnmap {
    GuestUnmap { vm, view: 0, gfn: Gfn(gfn), pages, more: false, broken: false }
}

fn counts(system: &mut System) -> FrameCounts {
    system.as_service(MEMORY, &FrameCount {}).unwrap()
}

/// Asserts that a request is refused and changes no count.
#[track_caller]
fn refused<R: caisson_proto::wire::Request + std::fmt::Debug>(system: &mut System, request: &R, status: Status)
where
    R::Reply: std::fmt::Debug + PartialEq,
{
    let before = counts(system);
    assert_eq!(system.as_service(MEMORY, request), Err(status), "{request:?}");
    assert_eq!(counts(system), before, "{request:?} was refused and changed something");
}

#[test]
fn a_class_of_operations_needs_its_capability() {
    let mut system = System::new(1);
    let denied = Some(Status::Denied);
    assert_eq!(system.as_service(VMM, &FrameCount {}).err(), denied);
    assert_eq!(system.as_service(VMM, &GuestLook { vm: NOBODY, gfn: Gfn(0), pages: 1 }).err(), denied);
    assert_eq!(system.as_service(VMM, &WriteBack { batch: BatchId(0) }).err(), denied);
    assert_eq!(system.as_service(VMM, &BatchInfo { slot: 0 }).err(), denied);
    assert_eq!(system.as_service(VMM, &ServiceStatus { slot: 0 }).err(), denied);
    assert_eq!(system.as_service(VMM, &PowerOff { status: 0 }).err(), denied);
    assert_eq!(system.as_service(MEMORY, &TimerSet { at: Tsc(1) }).err(), denied);
    assert_eq!(system.as_service(MEMORY, &InvalidateEnd { vm: NOBODY }).err(), denied);
    assert_eq!(system.as_service(VMM, &VmInfo { slot: 0 }).err(), denied);
    assert!(system.as_service(VMM, &MachineInfo {}).is_ok());
    assert_eq!(system.machine.off.get(), None);
    assert!(system.as_service(SUPERVISOR, &PowerOff { status: 3 }).is_ok());
    assert_eq!(system.machine.off.get(), Some(3));
}

#[test]
fn machine_info_has_what_the_tables_know() {
    let mut system = System::new(1);
    let info = system.as_service(NOTIFIER, &MachineInfo {}).unwrap();
    assert_eq!((info.frames, info.services), (FRAMES as u64, SERVICES as u16));
}

#[test]
fn making_a_vm_is_refused() {
    let mut system = System::new(1);
    let handler = system.id(VMM);
    let create = |handler, kind, root| VmCreate { handler, kind, root: Frame(root) };
    let mailbox = system.machine.mailbox.take();
    for kind in [VmKind::Sev, VmKind::SevEs, VmKind::SevSnp] {
        refused(&mut system, &create(handler, kind, 64), Status::Unsupported);
    }
    system.machine.mailbox = mailbox;
    refused(&mut system, &create(handler, VmKind::Plain, 0), Status::State);
    refused(&mut system, &create(handler, VmKind::Plain, FRAMES as u64), Status::Range);
    let memory = system.id(MEMORY);
    refused(&mut system, &create(memory, VmKind::Plain, 64), Status::Denied);
    system.awake(0, VMM);
    system.exit(0, 0);
    system.reply(0, Status::Ok, [0; 8]);
    refused(&mut system, &create(handler, VmKind::Plain, 64), Status::Dead);
    let dead = system.id(VMM);
    refused(&mut system, &create(dead, VmKind::Plain, 64), Status::Dead);
}

#[test]
fn tables_are_donated_within_bounds() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 0, 64);
    let donate = |vm, frame, count| TablesDonate { vm, frame: Frame(frame), count };
    refused(&mut system, &donate(NOBODY, 200, 1), Status::Dead);
    refused(&mut system, &donate(vm, 200, 0), Status::Range);
    refused(&mut system, &donate(vm, 200, 33), Status::Range);
    refused(&mut system, &donate(vm, 64, 1), Status::State);
    refused(&mut system, &donate(vm, FRAMES as u64 - 1, 2), Status::Range);
    assert!(system.as_service(MEMORY, &donate(vm, 200, 32)).is_ok());
}

#[test]
fn making_a_vcpu_is_refused() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let create =
        |vm, index, cpu, frame| VcpuCreate { vcpu: VcpuId { vm, index }, cpu: CpuId(cpu), frame: Frame(frame) };
    refused(&mut system, &create(NOBODY, 0, 0, 200), Status::Dead);
    refused(&mut system, &create(vm, 0, 0, 200), Status::State);
    refused(&mut system, &create(vm, 1, 1, 200), Status::Range);
    refused(&mut system, &create(vm, 1, 0, 64), Status::State);
    refused(&mut system, &create(vm, 1, 0, FRAMES as u64 - 6), Status::Range);
    // It takes no table.
    let handler = system.id(VMM);
    let poor = system.as_service(MEMORY, &VmCreate { handler, kind: VmKind::Plain, root: Frame(300) }).unwrap().vm;
    assert!(system.as_service(MEMORY, &create(poor, 0, 0, 301)).is_ok());
    assert!(system.as_service(MEMORY, &create(vm, MAX_VCPUS as u8 - 1, 0, 200)).is_ok());
}

#[test]
fn mapping_is_refused() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let last = (layout::USER_END - layout::GUEST) >> 12;
    refused(&mut system, &map(NOBODY, 0, 512, 1), Status::Dead);
    refused(&mut system, &map(vm, 0, 512, 0), Status::Range);
    refused(&mut system, &map(vm, 0, 512, 513), Status::Range);
    refused(&mut system, &map(vm, last, 512, 1), Status::Range);
    refused(&mut system, &map(vm, (1 << 40) - 1, 512, 2), Status::Range);
    refused(&mut system, &GuestMap { view: 1, ..map(vm, 0, 512, 1) }, Status::Range);
    refused(&mut system, &map(vm, 0, 64, 1), Status::State);
    refused(&mut system, &map(vm, 0, KERNEL_FRAMES - 1, 1), Status::State);
    refused(&mut system, &map(vm, 0, FRAMES as u64 - 1, 2), Status::Range);
    refused(&mut system, &GuestMap { sequence: Sequence(1), ..map(vm, 0, 512, 1) }, Status::Stale);
    system.as_service(MEMORY, &map(vm, 4, 512, 4)).unwrap();
    refused(&mut system, &map(vm, 0, 520, 5), Status::State);
    refused(&mut system, &map(vm, 0, 515, 2), Status::State);
    let handler = system.id(VMM);
    let poor = system.as_service(MEMORY, &VmCreate { handler, kind: VmKind::Plain, root: Frame(300) }).unwrap().vm;
    refused(&mut system, &map(poor, 0, 1024, 1), Status::Exhausted);
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    refused(&mut system, &map(vm, 100, 1024, 1), Status::State);
}

#[test]
fn what_was_used_is_zeroed_before_anybody_sees_it() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 4)).unwrap();
    assert!(system.machine.zeroed.borrow().is_empty(), "it was clean");
    let unmapped = system.as_service(MEMORY, &unmap(vm, 0, 4)).unwrap();
    system.as_service(NOTIFIER, &WriteBack { batch: unmapped.batch }).unwrap();
    system.as_service(MEMORY, &map(vm, 8, 600, 1)).unwrap();
    // The fake machine refuses to zero what is mapped.
    refused(&mut system, &map(vm, 8, 512, 4), Status::State);
    system.as_service(MEMORY, &map(vm, 0, 512, 4)).unwrap();
    assert_eq!(*system.machine.zeroed.borrow(), [(Frame(512), 4)], "once is enough");
}

#[test]
fn what_is_unmapped_waits_for_its_batch() {
    let mut system = System::new(1);
    let before = counts(&mut system);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 8)).unwrap();
    refused(&mut system, &unmap(NOBODY, 0, 1), Status::Dead);
    assert_eq!(system.as_service(MEMORY, &unmap(vm, 0, 0)).unwrap().pages, 0);
    refused(&mut system, &GuestUnmap { view: 3, ..unmap(vm, 0, 1) }, Status::Range);
    let nothing = system.as_service(MEMORY, &unmap(vm, 100, 5)).unwrap();
    assert_eq!((nothing.pages, nothing.next), (0, Gfn(105)));
    let unmapped = system.as_service(MEMORY, &unmap(vm, 2, 4)).unwrap();
    assert_eq!((unmapped.pages, unmapped.next), (4, Gfn(6)));
    assert_eq!(counts(&mut system).quarantined, 4);
    refused(&mut system, &map(vm, 50, 514, 1), Status::State);
    let open = system.as_service(MEMORY, &BatchInfo { slot: 0 }).unwrap();
    assert_eq!((open.batch, open.vm, open.frames, open.owed), (unmapped.batch, vm, 4, 0));
    assert_eq!(system.as_service(MEMORY, &BatchInfo { slot: open.next }).err(), Some(Status::NotFound));
    let paid = system.as_service(NOTIFIER, &WriteBack { batch: open.batch }).unwrap();
    assert_eq!(paid.ticket, Ticket(0));
    assert_eq!(system.as_service(NOTIFIER, &WriteBack { batch: open.batch }).err(), Some(Status::NotFound));
    assert_eq!(counts(&mut system).quarantined, 0);

    refused(&mut system, &VmRelease { vm }, Status::State);
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    refused(&mut system, &VmRelease { vm }, Status::Busy);
    let rest = system.as_service(MEMORY, &unmap(vm, 0, 1 << 20)).unwrap();
    assert_eq!(rest.pages, 4);
    let released = system.as_service(MEMORY, &VmRelease { vm }).unwrap();
    assert_eq!(released.pages, 1 + 32 + VCPU_FRAMES);
    system.as_service(NOTIFIER, &WriteBack { batch: released.batch }).unwrap();
    assert_eq!(counts(&mut system), before);
    assert!(system.machine.adopted.borrow().is_empty());
    assert!(system.machine.vcpus.borrow().is_empty());
    refused(&mut system, &VmRelease { vm }, Status::Dead);
    refused(&mut system, &VmDestroy { vm }, Status::Dead);
}

#[test]
fn what_its_handler_still_sees_stays_the_vms() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 2)).unwrap();
    system.machine.poor.set(true);
    let unmapped = system.as_service(MEMORY, &unmap(vm, 0, 1)).unwrap();
    assert_eq!((unmapped.pages, unmapped.next), (0, Gfn(1)));
    system.machine.poor.set(false);
    assert_eq!(system.as_service(MEMORY, &unmap(vm, 0, 2)).unwrap().pages, 1);
    assert_eq!((counts(&mut system).owned, counts(&mut system).quarantined), (1, 1));
}

#[test]
fn a_dying_vm_keeps_its_pages_until_its_vcpus_stand_still() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 2, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 1)).unwrap();
    system.run(VMM, VcpuId { vm, index: 1 });
    let context = Context::vcpu(vm.index(), 1);
    assert_eq!(system.pick(1), At::Guest(context));
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    refused(&mut system, &unmap(vm, 0, 1), Status::Busy);
    refused(&mut system, &VmRelease { vm }, Status::Busy);
    assert_eq!(system.pick(1), At::Idle);
    assert_eq!(system.as_service(MEMORY, &unmap(vm, 0, 1)).unwrap().pages, 1);
}

#[test]
fn an_encrypted_vm_owes_write_back_where_it_ran() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Sev, 2, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 2)).unwrap();
    system.activate(vm, 3, 1);
    system.run(VMM, VcpuId { vm, index: 1 });
    let context = Context::vcpu(vm.index(), 1);
    assert_eq!(system.pick(1), At::Guest(context));
    assert!(system.here(1).entering(context));
    system.here(1).context(context).leave();
    let first = system.as_service(MEMORY, &unmap(vm, 0, 1)).unwrap();
    assert_eq!(system.as_service(MEMORY, &BatchInfo { slot: 0 }).unwrap().owed, 1);
    let ticket = system.as_service(NOTIFIER, &WriteBack { batch: first.batch }).unwrap().ticket;
    assert_ne!(ticket, Ticket(0));
    assert!(!system.as_service(NOTIFIER, &TicketCheck { ticket }).unwrap().done);
    assert_eq!(counts(&mut system).quarantined, 1);
    system.here(1).flush_if_wanted();
    let at = system.pick(1);
    assert_eq!(at, At::User(FIRMWARE), "it hears of the ticket");
    assert_eq!(system.reply(1, Status::Ok, [0; 8]), At::User(NOTIFIER), "and notifier");
    assert_eq!(system.reply(1, Status::Ok, [0; 8]), At::User(MEMORY), "and memory of the frames");
    assert_eq!(system.reply(1, Status::Ok, [0; 8]), At::Guest(context));
    assert_eq!(system.machine.write_backs.get(), 1);
    assert!(system.as_service(NOTIFIER, &TicketCheck { ticket }).unwrap().done);
    assert_eq!(counts(&mut system).quarantined, 0);
    let later = Ticket(ticket.0 + 1);
    assert_eq!(system.as_service(NOTIFIER, &TicketCheck { ticket: later }).err(), Some(Status::NotFound));
    let second = system.as_service(MEMORY, &unmap(vm, 1, 1)).unwrap();
    let paid = system.as_service(NOTIFIER, &WriteBack { batch: second.batch }).unwrap();
    assert_eq!(paid.ticket, Ticket(0), "it did not run since");
}

#[test]
fn a_change_under_way_refuses_commits_in_its_range() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let begin = |start, end| InvalidateBegin { vm, start: Gfn(start), end: Gfn(end) };
    assert_eq!(system.as_service(NOTIFIER, &InvalidateEnd { vm }).err(), Some(Status::State));
    assert_eq!(system.as_service(NOTIFIER, &begin(5, 5)).err(), Some(Status::Range));
    assert_eq!(system.as_service(NOTIFIER, &InvalidateBegin { vm: NOBODY, ..begin(0, 1) }).err(), Some(Status::Dead));
    system.as_service(NOTIFIER, &begin(8, 16)).unwrap();
    refused(&mut system, &map(vm, 15, 512, 1), Status::Stale);
    system.as_service(MEMORY, &map(vm, 16, 512, 1)).unwrap();
    system.as_service(NOTIFIER, &InvalidateEnd { vm }).unwrap();
    refused(&mut system, &map(vm, 20, 513, 1), Status::Stale);
    let sequence = system.as_service(MEMORY, &VmInfo { slot: 0 }).unwrap().sequence;
    system.as_service(MEMORY, &GuestMap { sequence, ..map(vm, 15, 513, 1) }).unwrap();
}

#[test]
fn frames_and_vms_are_enumerated() {
    let mut system = System::new(1);
    assert_eq!(system.as_service(MEMORY, &VmInfo { slot: 0 }).err(), Some(Status::NotFound));
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let info = system.as_service(MEMORY, &VmInfo { slot: 0 }).unwrap();
    assert_eq!((info.vm, info.handler, info.state), (vm, system.id(VMM), VmState::Alive));
    assert_eq!((info.pages, info.kernel_frames), (0, 1 + 32 + VCPU_FRAMES));
    let mut runs = Vec::new();
    let mut from = Frame(0);
    loop {
        let run = system.as_service(MEMORY, &FrameRuns { from, most: u64::MAX }).unwrap();
        if run.count == 0 {
            break;
        }
        runs.push((run.start.0, run.count, run.state, run.owned_by_vm));
        from = Frame(run.start.0 + run.count);
    }
    let expected = [
        (0, KERNEL_FRAMES, FrameState::Kernel, false),
        (KERNEL_FRAMES, 64 - KERNEL_FRAMES, FrameState::Free, false),
        (64, 33, FrameState::Kernel, true),
        (97, 7, FrameState::Free, false),
        (104, 7, FrameState::Kernel, true),
        (111, FRAMES as u64 - 111, FrameState::Free, false),
    ];
    assert_eq!(runs, expected);
    let far = Frame((1 << 40) - 1);
    assert_eq!(system.as_service(MEMORY, &FrameRuns { from: far, most: 1 }).unwrap().count, 0);
    for (most, count) in [(0, 1), (1, 1), (6, 6), (7, 7), (8, 7)] {
        assert_eq!(system.as_service(MEMORY, &FrameRuns { from: Frame(97), most }).unwrap().count, count);
    }
}

#[test]
fn a_dying_vm_is_not_unmapped_amid_a_large_page() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 0, 64);
    system.as_service(MEMORY, &map(vm, 512, 1024, 512)).unwrap();
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    let unmap = |gfn, pages| GuestUnmap { vm, view: 0, gfn: Gfn(gfn), pages, more: false, broken: false };
    for (gfn, pages) in [(512, 1), (513, 600), (0, 1000)] {
        refused(&mut system, &unmap(gfn, pages), Status::Range);
    }
    assert_eq!(system.as_service(MEMORY, &unmap(0, 2048)).unwrap().pages, 512);
}

#[test]
fn one_unmap_looks_through_a_gibibyte() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 0, 64);
    let unmap = |gfn| GuestUnmap { vm, view: 0, gfn: Gfn(gfn), pages: 1 << 20, more: false, broken: false };
    assert_eq!(system.as_service(MEMORY, &unmap(0)).unwrap().next, Gfn(1 << 18));
    assert_eq!(system.as_service(MEMORY, &unmap(7)).unwrap().next, Gfn(1 << 18));
    assert_eq!(system.as_service(MEMORY, &unmap(1 << 18)).unwrap().next, Gfn(2 << 18));
}
