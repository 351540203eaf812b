//! ASIDs of encrypted VMs, and what WBINVD pays for.

use std::rc::Rc;

use caisson_core::context::Context;
use caisson_core::event::Event;
use caisson_core::kernel::Kernel;
use caisson_proto::abi::Status;
use caisson_proto::addr::{CpuId, Frame, Gfn, Sequence, Ticket, VcpuId, VmId};
use caisson_proto::kernel::*;
use caisson_proto::mailbox;

use super::system::{At, FIRMWARE, MEMORY, NOTIFIER, System, VMM};

pub const NOBODY: VmId = VmId::new(9, 0);

/// A SEV VM with a vCPU and 8 pages from gfn 0 and frame 512 on.
pub fn guest(system: &mut System) -> VmId {
    let vm = system.vm(VMM, VmKind::Sev, 1, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 8)).unwrap();
    vm
}

pub fn map(vm: VmId, gfn: u64, frame: u64, pages: u64) -> GuestMap {
    let access = Access::all();
    GuestMap { vm, view: 0, gfn: Gfn(gfn), frame: Frame(frame), pages, access, sequence: Sequence(0) }
}

pub fn bind(system: &mut System, vm: VmId, asid: u32) -> Result<(), Status> {
    system.as_service(FIRMWARE, &AsidBind { vm, asid }).map(|_| ())
}

pub fn asid(system: &mut System, asid: u32) -> AsidReport {
    system.as_service(FIRMWARE, &AsidInfo { asid }).unwrap()
}

pub fn state(system: &mut System, asid: u32) -> AsidState {
    self::asid(system, asid).state
}

/// WBINVD everywhere, on a machine with one CPU or where the others answer at once.
pub fn wbinvd(system: &mut System) -> Ticket {
    let ticket = system.as_service(FIRMWARE, &WriteBackInvalidate {}).unwrap().ticket;
    (1..system.locals.len()).for_each(|cpu| system.flush(cpu));
    assert!(system.as_service(FIRMWARE, &TicketCheck { ticket }).unwrap().done);
    ticket
}

#[test]
fn an_asid_is_bound_once_and_only_to_a_vm_of_its_class() {
    let mut system = System::new(1);
    let sev = guest(&mut system);
    let es = system.vm(VMM, VmKind::SevEs, 1, 1000);
    let plain = system.vm(VMM, VmKind::Plain, 1, 1100);
    for (vm, asids) in [(sev, [0, 1, 2, 6, u32::MAX]), (es, [0, 3, 5, 6, u32::MAX])] {
        for asid in asids {
            assert_eq!(bind(&mut system, vm, asid), Err(Status::Range), "{asid}");
        }
    }
    assert_eq!(bind(&mut system, plain, 3), Err(Status::State));
    assert_eq!(bind(&mut system, NOBODY, 3), Err(Status::Dead));
    assert_eq!(bind(&mut system, sev, 3), Ok(()));
    assert_eq!(system.machine.asids.borrow()[&Context::vcpu(sev.index(), 0).number()], 3, "its vCPU has it");
    assert_eq!(bind(&mut system, sev, 4), Err(Status::State), "it has one");
    let other = system.vm(VMM, VmKind::Sev, 0, 1200);
    assert_eq!(bind(&mut system, other, 3), Err(Status::Busy));
    assert_eq!(bind(&mut system, es, 1), Ok(()));
    let report = asid(&mut system, 1);
    assert_eq!((report.state, report.vm, report.kind, report.handle), (AsidState::Bound, es, VmKind::SevEs, 0));
    assert_eq!(system.as_service(FIRMWARE, &AsidInfo { asid: 6 }).err(), Some(Status::NotFound));
    system.as_service(MEMORY, &VmDestroy { vm: other }).unwrap();
    assert_eq!(bind(&mut system, other, 4), Err(Status::State), "it is dying");
}

#[test]
fn an_asid_is_bound_again_only_after_wbinvd_and_then_df_flush() {
    let mut system = System::new(2);
    let vm = guest(&mut system);
    let next = system.vm(VMM, VmKind::Sev, 0, 1000);
    system.activate(vm, 3, 7);
    let report = asid(&mut system, 3);
    assert_eq!((report.state, report.vm, report.handle), (AsidState::Active, vm, 7));
    assert_eq!(bind(&mut system, next, 3), Err(Status::Busy));
    system.command(mailbox::DEACTIVATE, vm);
    assert_eq!(state(&mut system, 3), AsidState::Dirty);
    assert_eq!(bind(&mut system, next, 3), Err(Status::TooWeak));
    assert_eq!(system.ring_processor(mailbox::DF_FLUSH, NOBODY, &[]), Err(Status::TooWeak), "no WBINVD since");
    assert_eq!(system.ring_processor(mailbox::SNP_DF_FLUSH, NOBODY, &[]), Err(Status::TooWeak));
    wbinvd(&mut system);
    assert_eq!(state(&mut system, 3), AsidState::Flushed);
    assert_eq!(bind(&mut system, next, 3), Err(Status::TooWeak), "no DF_FLUSH since");
    // One that fails leaves everything as it was; and so does one whose guest isn't forgotten.
    system.ring_processor(mailbox::DF_FLUSH, NOBODY, &[]).unwrap();
    assert_eq!(system.answered(1, 0).status, 1);
    assert_eq!(state(&mut system, 3), AsidState::Flushed);
    system.command(mailbox::DF_FLUSH, NOBODY);
    assert_eq!(state(&mut system, 3), AsidState::Flushed, "the firmware still knows its guest");
    system.command(mailbox::DECOMMISSION, vm);
    system.command(mailbox::DF_FLUSH, NOBODY);
    assert_eq!(state(&mut system, 3), AsidState::Free);
    assert_eq!(bind(&mut system, next, 3), Ok(()));
}

#[test]
fn a_vm_that_goes_without_being_activated_leaves_its_asid_dirty() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Sev, 0, 64);
    bind(&mut system, vm, 3).unwrap();
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    system.as_service(MEMORY, &VmRelease { vm }).unwrap();
    assert_eq!(state(&mut system, 3), AsidState::Dirty);
}

#[test]
fn an_active_asid_outlives_its_vm_until_it_is_deactivated() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Sev, 0, 64);
    system.activate(vm, 3, 7);
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    system.as_service(MEMORY, &VmRelease { vm }).unwrap();
    assert_eq!(state(&mut system, 3), AsidState::Active);
    system.command(mailbox::DEACTIVATE, vm);
    assert_eq!(system.machine.command()[0], 7, "the kernel remembers the handle");
    assert_eq!(state(&mut system, 3), AsidState::Dirty);
}

#[test]
fn wbnoinvd_or_some_cpus_recycle_nothing() {
    let mut system = System::new(2);
    let vm = guest(&mut system);
    system.activate(vm, 3, 7);
    system.command(mailbox::DEACTIVATE, vm);
    let ticket = system.as_service(FIRMWARE, &WriteBackInvalidate {}).unwrap().ticket;
    assert_eq!(system.machine.invalidations.get(), 1, "CPU 0 did it at once");
    let check = system.as_service(FIRMWARE, &TicketCheck { ticket }).unwrap();
    assert_eq!((check.done, check.late), (false, CpuId(1)), "and CPU 1 is named");
    assert_eq!(state(&mut system, 3), AsidState::Dirty);
    assert_eq!(system.ring_processor(mailbox::DF_FLUSH, NOBODY, &[]), Err(Status::TooWeak));
    system.flush(1);
    assert_eq!(state(&mut system, 3), AsidState::Flushed);
    let wrote = |cpu| Event::WroteBack(CpuId(cpu), true);
    let events = system.machine.events.borrow();
    assert!(events.contains(&wrote(0)) && events.contains(&wrote(1)));
}

#[test]
fn a_write_back_that_is_not_wbinvd_pays_for_no_recycling() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Sev, 2, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 2)).unwrap();
    system.activate(vm, 3, 7);
    system.run(VMM, VcpuId { vm, index: 1 });
    let context = Context::vcpu(vm.index(), 1);
    assert_eq!(system.pick(1), At::Guest(context));
    assert!(system.here(1).entering(context));
    system.here(1).context(context).leave();
    let ticket = system.as_service(FIRMWARE, &WriteBackInvalidate {}).unwrap().ticket;
    let unmapped = system
        .as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(0), pages: 1, more: false, broken: false })
        .unwrap();
    assert!(!system.as_service(FIRMWARE, &TicketCheck { ticket }).unwrap().done);
    // One WBINVD pays for both.
    let back = system.as_service(NOTIFIER, &WriteBack { batch: unmapped.batch }).unwrap().ticket;
    system.flush(1);
    assert_eq!((system.machine.write_backs.get(), system.machine.invalidations.get()), (2, 2));
    assert!(system.as_service(FIRMWARE, &TicketCheck { ticket }).unwrap().done);
    assert!(system.as_service(NOTIFIER, &TicketCheck { ticket: back }).unwrap().done);
    // A batch's own write-back is no WBINVD.
    assert!(system.here(1).entering(context));
    system.here(1).context(context).leave();
    let unmapped = system
        .as_service(MEMORY, &GuestUnmap { vm, view: 0, gfn: Gfn(1), pages: 1, more: false, broken: false })
        .unwrap();
    system.as_service(NOTIFIER, &WriteBack { batch: unmapped.batch }).unwrap();
    system.flush(1);
    assert_eq!((system.machine.write_backs.get(), system.machine.invalidations.get()), (3, 2));
    assert_eq!(system.kernel.cpus[1].wbinvds.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn who_asks_while_a_cpu_flushes_is_paid_by_the_next_flush() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.activate(vm, 3, 7);
    // Another CPU asks while this one executes: it sets what it wants before the pages are counted.
    let kernel: Rc<Kernel> = Rc::clone(&system.kernel);
    *system.machine.at_write_back.borrow_mut() = Some(Box::new(move || {
        kernel.cpus[0].invalidate_wanted.swap(true);
        kernel.cpus[0].flush_wanted.swap(true);
    }));
    let ticket = system.as_service(FIRMWARE, &WriteBackInvalidate {}).unwrap().ticket;
    assert_eq!(system.machine.invalidations.get(), 2, "it flushes once more before anything is paid");
    assert!(system.as_service(FIRMWARE, &TicketCheck { ticket }).unwrap().done);
}

#[test]
fn what_became_dirty_after_a_ticket_is_not_flushed_by_it() {
    let mut system = System::new(2);
    let vm = guest(&mut system);
    system.activate(vm, 3, 7);
    let early = system.as_service(FIRMWARE, &WriteBackInvalidate {}).unwrap().ticket;
    system.command(mailbox::DEACTIVATE, vm);
    system.flush(1);
    assert!(system.as_service(FIRMWARE, &TicketCheck { ticket: early }).unwrap().done);
    assert_eq!(state(&mut system, 3), AsidState::Dirty, "it was deactivated while that WBINVD was under way");
    wbinvd(&mut system);
    assert_eq!(state(&mut system, 3), AsidState::Flushed);
}

#[test]
fn df_flush_recycles_only_what_was_flushed_when_it_was_rung() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Sev, 0, 64);
    bind(&mut system, vm, 3).unwrap();
    system.ring_processor(mailbox::DF_FLUSH, NOBODY, &[]).unwrap();
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    system.as_service(MEMORY, &VmRelease { vm }).unwrap();
    wbinvd(&mut system);
    assert_eq!(system.answered(0, 0).status, 0);
    assert_eq!(state(&mut system, 3), AsidState::Flushed, "the processor may have executed it before");
    system.command(mailbox::DF_FLUSH, NOBODY);
    assert_eq!(state(&mut system, 3), AsidState::Free);
}

#[test]
fn shutdown_and_init_make_asids_dirty() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.activate(vm, 3, 7);
    system.command(mailbox::SHUTDOWN, NOBODY);
    let report = asid(&mut system, 3);
    assert_eq!((report.state, report.handle), (AsidState::Dirty, 0));
    assert_eq!(state(&mut system, 4), AsidState::Free);
    system.command(mailbox::INIT, NOBODY);
    assert!((1..6).all(|asid| state(&mut system, asid) == AsidState::Dirty));
    wbinvd(&mut system);
    system.command(mailbox::DF_FLUSH, NOBODY);
    assert!((1..6).all(|asid| state(&mut system, asid) == AsidState::Free));
}

#[test]
fn a_flush_that_nobody_is_asked_for_opens_nothing() {
    let mut system = System::new(2);
    // CPU 1 doesn't answer.
    let ask =
        |system: &mut System| system.as_service(FIRMWARE, &WriteBackInvalidate {}).map(|accepted| accepted.ticket);
    let tickets: Vec<Ticket> = (0..64).map(|_| ask(&mut system).unwrap()).collect();
    let batch = system.as_service(NOTIFIER, &BatchInfo { slot: 0 }).unwrap();
    assert_eq!(ask(&mut system), Err(Status::Busy));
    assert_eq!(system.as_service(NOTIFIER, &BatchInfo { slot: 0 }).unwrap(), batch, "CPU 0 owes nothing again");
    system.flush(1);
    for ticket in tickets {
        assert!(system.as_service(FIRMWARE, &TicketCheck { ticket }).unwrap().done);
    }
    wbinvd(&mut system);
}
