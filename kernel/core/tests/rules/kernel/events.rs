//! An event of several unmappings has one shootdown, at its end, and nobody pays for its frames before.

use std::rc::Rc;

use caisson_core::batches::{MAX_BATCHES, Payable};
use caisson_core::context::Context;
use caisson_core::cpus::CpuSet;
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Frame, Gfn, Ticket, VPage, VcpuId, VmId};
use caisson_proto::kernel::*;

use super::asids::{self, map};
use super::fake::NOT_THERE;
use super::system::{At, MEMORY, NOTIFIER, System, VMM};

fn unmap(vm: VmId, gfn: u64, pages: u64, more: bool) -> GuestUnmap {
    GuestUnmap { vm, view: 0, gfn: Gfn(gfn), pages, more, broken: false }
}

/// A plain VM with 8 pages from gfn 0 and frame 512 on.
fn plain(system: &mut System) -> VmId {
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 8)).unwrap();
    vm
}

fn shootdowns(system: &System) -> usize {
    system.machine.did.take().iter().filter(|what| **what == "host's translations").count()
}

#[test]
fn three_unmappings_have_one_shootdown_and_one_batch() {
    let mut system = System::new(1);
    let vm = plain(&mut system);
    system.machine.did.take();
    let first = system.as_service(MEMORY, &unmap(vm, 0, 1, true)).unwrap();
    let second = system.as_service(MEMORY, &unmap(vm, 3, 2, true)).unwrap();
    assert_eq!((first.pages, first.waiting, second.pages, second.waiting), (1, 0, 2, 0));
    assert_eq!(first.batch, second.batch);
    assert_eq!(shootdowns(&system), 0);
    let last = system.as_service(MEMORY, &unmap(vm, 7, 1, false)).unwrap();
    assert_eq!((last.batch, last.pages, last.waiting), (first.batch, 1, 4));
    assert_eq!(shootdowns(&system), 1);
    assert_eq!(system.as_service(NOTIFIER, &WriteBack { batch: last.batch }).unwrap().ticket, Ticket(0));
    assert_eq!(system.as_service(MEMORY, &FrameCount {}).unwrap().quarantined, 0);
}

#[test]
fn nobody_pays_before_the_end() {
    let mut system = System::new(1);
    let vm = plain(&mut system);
    let held = system.as_service(MEMORY, &unmap(vm, 0, 2, true)).unwrap().batch;
    assert_eq!(system.as_service(NOTIFIER, &BatchInfo { slot: 0 }).err(), Some(Status::NotFound), "not theirs yet");
    assert_eq!(system.as_service(NOTIFIER, &WriteBack { batch: held }).err(), Some(Status::Busy));
    asids::wbinvd(&mut system);
    system.flush(0);
    assert_eq!(system.as_service(MEMORY, &FrameCount {}).unwrap().quarantined, 2, "a WBINVD doesn't pay either");
    assert_eq!(system.as_service(MEMORY, &map(vm, 100, 512, 1)).err(), Some(Status::State));
    // What else leaves a VM isn't held with it.
    let vm2 = system.vm(VMM, VmKind::Plain, 0, 200);
    system.as_service(MEMORY, &map(vm2, 0, 520, 1)).unwrap();
    let other = system.as_service(MEMORY, &unmap(vm2, 0, 1, false)).unwrap();
    assert_ne!(other.batch, held);
    assert!(system.as_service(NOTIFIER, &WriteBack { batch: other.batch }).is_ok());
    // The end may be of no pages.
    let end = system.as_service(MEMORY, &unmap(vm, 0, 0, false)).unwrap();
    assert_eq!((end.batch, end.pages, end.waiting), (held, 0, 2));
    assert!(system.as_service(NOTIFIER, &WriteBack { batch: held }).is_ok());
    let none = system.as_service(MEMORY, &unmap(vm, 0, 0, false)).unwrap();
    assert_eq!((none.pages, none.waiting), (0, 0));
}

#[test]
fn who_owes_is_asked_after_the_shootdown() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Sev, 2, 64);
    let vcpu = VcpuId { vm, index: 1 };
    system.activate(vm, 3, 7);
    system.as_service(MEMORY, &map(vm, 0, 512, 8)).unwrap();
    let held = system.as_service(MEMORY, &unmap(vm, 0, 2, true)).unwrap().batch;
    // A vCPU runs meanwhile: its translations may still lead to the frames.
    let context = Context::vcpu(vm.index(), 1);
    system.run(VMM, vcpu);
    assert_eq!(system.pick(1), At::Guest(context));
    assert!(system.here(1).entering(context));
    let kernel = Rc::clone(&system.kernel);
    *system.machine.meanwhile.borrow_mut() = Some(Box::new(move || kernel.context(context).leave()));
    let end = system.as_service(MEMORY, &unmap(vm, 0, 0, false)).unwrap();
    assert_eq!(end.batch, held);
    let report = system.as_service(NOTIFIER, &BatchInfo { slot: 0 }).unwrap();
    assert_eq!((report.batch, report.frames, report.owed), (held, 2, 1));
}

#[test]
fn without_a_batch_of_its_own_an_event_does_not_begin() {
    let mut system = System::new(1);
    let vm = plain(&mut system);
    {
        let here = system.here(0);
        let mut tables = here.tables();
        for n in 0..MAX_BATCHES as u16 {
            tables.batches.open(VmId::new(40 + n, 0), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack).unwrap();
        }
    }
    assert_eq!(system.as_service(MEMORY, &unmap(vm, 0, 1, true)).err(), Some(Status::Busy));
    assert_eq!(system.as_service(MEMORY, &unmap(vm, 0, 1, false)).unwrap().pages, 1, "it joins another's");
}

#[test]
fn a_vm_is_not_released_amid_an_event() {
    let mut system = System::new(1);
    let vm = plain(&mut system);
    system.as_service(MEMORY, &unmap(vm, 0, 8, true)).unwrap();
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    assert_eq!(system.as_service(MEMORY, &VmRelease { vm }).err(), Some(Status::Busy));
    assert_eq!(system.as_service(MEMORY, &unmap(vm, 0, 0, false)).unwrap().waiting, 8);
    assert!(system.as_service(MEMORY, &VmRelease { vm }).is_ok());
}

#[test]
fn a_broken_frame_is_never_used_again() {
    let mut system = System::new(1);
    let vm = plain(&mut system);
    let before = system.as_service(MEMORY, &FrameCount {}).unwrap();
    let broken = GuestUnmap { broken: true, ..unmap(vm, 0, 1, false) };
    let unmapped = system.as_service(MEMORY, &broken).unwrap();
    assert_eq!((unmapped.pages, unmapped.waiting), (1, 0));
    let after = system.as_service(MEMORY, &FrameCount {}).unwrap();
    assert_eq!((after.owned, after.leaked), (before.owned - 1, before.leaked + 1));
    assert_eq!(system.as_service(NOTIFIER, &WriteBack { batch: unmapped.batch }).unwrap().ticket, Ticket(0));
    assert_eq!(system.as_service(MEMORY, &map(vm, 0, 512, 1)).err(), Some(Status::State));
    assert_eq!(system.as_service(MEMORY, &map(vm, 0, 600, 1)).err(), None);
}

#[test]
fn frames_come_with_the_contents_of_leased_pages() {
    let mut system = System::new(1);
    let vm = plain(&mut system);
    system.machine.copied.borrow_mut().clear();
    let lease = Lease { page: VPage(77), pages: 2, write: false };
    system.as_lender(MEMORY, &map(vm, 100, 600, 2), Some(lease)).unwrap();
    let copied = system.machine.copied.borrow().clone();
    assert_eq!(copied, [(77 << 12, Frame(600).spa(), 4096, false), (78 << 12, Frame(601).spa(), 4096, false)]);
    // What came to nothing is zeroed for the next.
    let absent = Lease { page: NOT_THERE, ..lease };
    assert_eq!(system.as_lender(MEMORY, &map(vm, 102, 602, 1), Some(absent)).err(), Some(Status::BadLease));
    system.as_service(MEMORY, &map(vm, 102, 602, 1)).unwrap();
    assert_eq!(system.machine.zeroed.borrow().last(), Some(&(Frame(602), 1)));
}
