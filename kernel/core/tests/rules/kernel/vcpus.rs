//! Operations on vCPUs.

use caisson_core::context::{Context, Phase};
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Frame, VPage, VcpuId, VmId};
use caisson_proto::exits::code;
use caisson_proto::kernel::{CpuidLoad, TablesDonate, VcpuKick, VcpuRead, VcpuRun, VmCreate, VmDestroy, VmKind};
use caisson_proto::vcpu::{Action, Groups};

use super::fake::NOT_THERE;
use super::system::{At, MEMORY, OTHER_VMM, System, VMM};

const PAGE: Lease = Lease { page: VPage(0x400), pages: 1, write: false };

#[test]
fn only_the_handler_of_a_living_vm_may_and_only_what_exists() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let own = VcpuId { vm, index: 0 };
    let cases = [
        (OTHER_VMM, own, Status::Denied),
        (MEMORY, own, Status::Denied),
        (VMM, VcpuId { vm, index: 1 }, Status::NotFound),
        (VMM, VcpuId { vm: VmId::new(7, 0), index: 0 }, Status::Dead),
        (VMM, VcpuId { vm: VmId::new(vm.index() as u16, 1), index: 0 }, Status::Dead),
    ];
    for (slot, vcpu, status) in cases {
        assert_eq!(system.as_service(slot, &VcpuRun { vcpu }), Err(status));
        assert_eq!(system.as_service(slot, &VcpuKick { vcpu }), Err(status));
        assert_eq!(system.as_service(slot, &VcpuRead { vcpu, groups: Groups::all() }), Err(status));
        assert_eq!(system.as_service(slot, &CpuidLoad { vcpu }), Err(status));
    }
    system.as_service(MEMORY, &VmDestroy { vm }).unwrap();
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu: own }), Err(Status::State));
    assert_eq!(system.as_service(VMM, &VcpuRead { vcpu: own, groups: Groups::all() }), Err(Status::State));
}

#[test]
fn a_vcpu_runs_once() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let vcpu = VcpuId { vm, index: 0 };
    system.machine.refuse.set(true);
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::Range), "the processor refuses its state");
    system.machine.refuse.set(false);
    system.run(VMM, vcpu);
    assert_eq!(system.as_service(VMM, &VcpuRun { vcpu }), Err(Status::State));
    assert_eq!(system.pick(0), At::Guest(Context::vcpu(vm.index(), 0)));
}

#[test]
fn registers_are_read_while_they_stand_still() {
    let mut system = System::new(2);
    let vm = system.vm(VMM, VmKind::Plain, 2, 64);
    let (first, second) = (VcpuId { vm, index: 0 }, VcpuId { vm, index: 1 });
    let groups = Groups::all();
    assert!(system.as_service(VMM, &VcpuRead { vcpu: first, groups }).is_ok(), "it never ran");
    system.run(VMM, second);
    assert_eq!(system.as_service(VMM, &VcpuRead { vcpu: second, groups }), Err(Status::Busy), "it is ready");
    let context = Context::vcpu(vm.index(), 1);
    assert_eq!(system.pick(1), At::Guest(context));
    assert_eq!(system.as_service(VMM, &VcpuRead { vcpu: second, groups }), Err(Status::Busy), "it runs");
    assert_eq!(system.guest_exit(1, context, code::HLT), At::User(VMM));
    assert!(system.ask(1, &VcpuRead { vcpu: second, groups }).is_ok(), "its exit is being handled");
    assert_eq!(system.resume(1, Action::Park, 0), At::Idle);
    let elsewhere = system.as_service(VMM, &VcpuRead { vcpu: second, groups });
    assert_eq!(elsewhere, Err(Status::Busy), "some of its registers may still be in its own CPU");
    let groups = groups - Groups::XCR0 - Groups::DEBUG - Groups::TSC;
    assert!(system.as_service(VMM, &VcpuRead { vcpu: second, groups }).is_ok(), "it is parked");
}

#[test]
fn a_cpuid_table_comes_in_one_page() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let vcpu = VcpuId { vm, index: 0 };
    system.awake(0, VMM);
    let load = CpuidLoad { vcpu };
    assert!(system.ask_lending(0, &load, Some(PAGE)).is_ok());
    let last = system.machine.copied.borrow().last().copied();
    let table = system.kernel.inspect(|tables| tables.books[vm.index()].vcpus[0]).flatten().unwrap().0 + 6;
    assert_eq!(last, Some((PAGE.page.0 << 12, Frame(table).spa(), 4096, false)), "the last of its frames");
    assert_eq!(system.ask_lending(0, &load, Some(Lease { pages: 2, ..PAGE })), Err(Status::Range));
    assert_eq!(system.ask_lending(0, &load, Some(Lease { page: NOT_THERE, ..PAGE })), Err(Status::BadLease));
    assert_eq!(system.ask_lending(0, &load, None), Err(Status::BadLease));
    system.reply(0, Status::Ok, [0; 8]);
    system.run(VMM, vcpu);
    system.awake(0, VMM);
    assert_eq!(system.ask_lending(0, &load, Some(PAGE)), Err(Status::Busy));
}

#[test]
fn a_stopped_vcpu_can_run_again() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 1, 64);
    let (vcpu, context) = (VcpuId { vm, index: 0 }, Context::vcpu(vm.index(), 0));
    system.run(VMM, vcpu);
    assert_eq!(system.guest_exit(0, context, code::HLT), At::User(VMM));
    assert_eq!(system.resume(0, Action::Stop, 0), At::Idle);
    assert_eq!(system.kernel.context(context).phase.get(), Phase::Idle);
    system.run(VMM, vcpu);
    assert_eq!(system.pick(0), At::Guest(context));
}

#[test]
fn an_asid_is_one_vms() {
    let mut system = System::new(1);
    // Plain VMs have the ASIDs above those of encrypted ones: 6 to 8.
    let vms: Vec<VmId> = (0..3).map(|n| system.vm(VMM, VmKind::Plain, 1, 64 + n * 64)).collect();
    let asids: Vec<u32> = system.machine.asids.borrow().values().copied().collect();
    assert_eq!(asids, [6, 7, 8]);
    let create = VmCreate { handler: system.id(VMM), kind: VmKind::Plain, root: Frame(400) };
    assert_eq!(system.as_service(MEMORY, &create), Err(Status::Exhausted));
    assert!(system.as_service(MEMORY, &TablesDonate { vm: vms[2], frame: Frame(400), count: 1 }).is_ok());
}
