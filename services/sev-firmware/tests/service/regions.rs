//! Regions: turned private in chunks, taken off the list by exactly what was put on it.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{GuestConvert, VmKind};
use caisson_proto::wire::Request;
use caisson_sev_firmware::{PER_VM, Region};

use crate::world::*;

fn register(world: &mut World, vm: VmId, gfn: u64, pages: u64) -> JobReport {
    world.ok(vmm(vm.index() as u16), &RegisterRegion { vm, gfn: Gfn(gfn), pages, known: false })
}

fn unregister(world: &mut World, vm: VmId, gfn: u64, pages: u64) -> Result<(), Status> {
    let request = UnregisterRegion { vm, gfn: Gfn(gfn), pages };
    world.ask(vmm(vm.index() as u16), &request, None).map(|_| ())
}

/// A guest in its launch with so many pages.
fn guest(world: &mut World, slot: u16, pages: u64) -> VmId {
    let vm = world.fake.vm(slot, vmm(slot), VmKind::Sev, pages);
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
    vm
}

#[test]
fn a_large_one_is_turned_chunk_by_chunk_and_others_get_in_between() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 10_000);
    let request = RegisterRegion { vm, gfn: Gfn(100), pages: 9_000, known: false };
    let job = world.send(vmm(0), &request, &[]).unwrap();
    // A bounded part, and the bell is rung for the rest.
    assert!(world.fake.again && world.fake.flushed_pages < 9_000);
    assert_eq!(world.result(vmm(0), job).unwrap().0.state, JobState::Running);
    world.pump();
    let (report, _) = world.result(vmm(0), job).unwrap();
    assert_eq!((report.status, report.done, world.fake.flushed_pages), (Status::Ok, 9_000, 9_000));
    // No chunk crosses what a large page would cover.
    assert_eq!(world.fake.private_calls[..2], [412, 512]);
    assert!(world.fake.private_calls.iter().all(|pages| *pages <= 512));
    assert_eq!(world.firmware.account().regions.all(), [Region { vm, gfn: Gfn(100), pages: 9_000 }]);
}

#[test]
fn only_the_exact_page_and_size_take_it_off() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 64);
    let other = guest(&mut world, 1, 64);
    assert_eq!(register(&mut world, vm, 8, 16).status, Status::Ok);
    assert_eq!(register(&mut world, vm, 24, 16).status, Status::Ok);
    for (gfn, pages) in [(8, 15), (8, 17), (9, 16), (7, 16), (9, 15), (8, 32), (0, 64), (40, 16), (8, 0)] {
        assert_eq!(unregister(&mut world, vm, gfn, pages), Err(Status::NotFound), "{gfn} {pages}");
    }
    assert_eq!(unregister(&mut world, other, 8, 16), Err(Status::NotFound));
    assert_eq!(unregister(&mut world, vm, 8, 16), Ok(()));
    assert_eq!(unregister(&mut world, vm, 8, 16), Err(Status::NotFound));
    assert_eq!(unregister(&mut world, vm, 24, 16), Ok(()));
    // memory may, another vmm may not.
    assert_eq!(register(&mut world, vm, 40, 8).status, Status::Ok);
    let request = UnregisterRegion { vm, gfn: Gfn(40), pages: 8 };
    assert_eq!(world.ask(vmm(1), &request, None), Err(Status::Denied));
    assert!(world.ask(MEMORY, &request, None).is_ok());
}

#[test]
fn what_overlaps_is_refused() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 64);
    let other = guest(&mut world, 1, 64);
    assert_eq!(register(&mut world, vm, 16, 16).status, Status::Ok);
    for (gfn, pages) in [(16, 16), (15, 2), (31, 1), (0, 64), (20, 4), (0, 17)] {
        let report = register(&mut world, vm, gfn, pages);
        assert_eq!((report.status, report.cause), (Status::State, Cause::Service), "{gfn} {pages}");
    }
    assert_eq!(register(&mut world, vm, 0, 16).status, Status::Ok);
    assert_eq!(register(&mut world, vm, 32, 32).status, Status::Ok);
    assert_eq!(register(&mut world, other, 16, 16).status, Status::Ok, "another VM's");
}

#[test]
fn what_the_kernel_refuses_ends_the_region_there() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 600);
    // Pages 512 to 599 come after a chunk; from 600 on nothing is mapped.
    let report = register(&mut world, vm, 0, 700);
    assert_eq!((report.status, report.cause, report.done), (Status::State, Cause::Kernel, 512));
    assert_eq!(unregister(&mut world, vm, 0, 700), Err(Status::NotFound));
    assert_eq!(unregister(&mut world, vm, 0, 512), Ok(()));
    // Nothing at all: no region.
    let report = register(&mut world, vm, 0, 512);
    assert_eq!((report.status, report.cause, report.done), (Status::State, Cause::Kernel, 0));
    assert_eq!(world.firmware.account().regions.all(), []);
    world.fake.refused.insert(GuestConvert::OP, Status::Exhausted);
    assert_eq!(register(&mut world, vm, 512, 8).status, Status::Exhausted);
}

#[test]
fn it_takes_a_place_in_the_list() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 64);
    for index in 0..PER_VM as u64 {
        assert_eq!(register(&mut world, vm, index, 1).status, Status::Ok);
    }
    let report = register(&mut world, vm, 20, 1);
    assert_eq!((report.status, report.cause), (Status::Exhausted, Cause::Service));
    let other = guest(&mut world, 1, 64);
    assert_eq!(register(&mut world, other, 20, 1).status, Status::Ok);
    // They end with their guest.
    world.bury(vm);
    assert_eq!(world.firmware.account().regions.all().len(), 1);
}

#[test]
fn before_the_launch_it_is_for_sev_and_not_for_snp() {
    let mut world = World::snp();
    for (slot, kind) in [(0, VmKind::Sev), (1, VmKind::SevEs)] {
        let vm = world.fake.vm(slot, vmm(slot), kind, 8);
        assert_eq!(register(&mut world, vm, 0, 8).status, Status::Ok);
        assert_eq!(world.start(vm, kind).status, Status::Ok);
        let update = LaunchUpdate { vm, gpa: caisson_proto::addr::Gpa(0), bytes: 0x8000 };
        assert_eq!(world.ok(vmm(slot), &update).status, Status::Ok);
    }
    let vm = world.fake.vm(2, vmm(2), VmKind::SevSnp, 8);
    let report = register(&mut world, vm, 0, 8);
    assert_eq!((report.status, report.cause), (Status::State, Cause::Kernel));
}

#[test]
fn sizes_that_cant_be_are_refused_at_once() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 8);
    for (gfn, pages) in [(0, 0), (0, REGION_PAGES + 1), (0, u64::MAX), ((1 << 40) - 1, 2)] {
        let request = RegisterRegion { vm, gfn: Gfn(gfn), pages, known: false };
        assert_eq!(world.send(vmm(0), &request, &[]), Err(Status::Range), "{gfn:#x} {pages:#x}");
    }
}

#[test]
fn a_successor_is_told_of_them_and_asks_the_kernel_for_nothing() {
    let mut world = World::sev();
    let vm = guest(&mut world, 0, 64);
    assert_eq!(register(&mut world, vm, 0, 32).status, Status::Ok);
    world.restart();
    world.pump();
    assert_eq!(unregister(&mut world, vm, 0, 32), Err(Status::NotFound));
    let calls = world.fake.private_calls.len();
    let known = RegisterRegion { vm, gfn: Gfn(0), pages: 32, known: true };
    assert_eq!(world.ok(vmm(0), &known).status, Status::Ok);
    assert_eq!((world.fake.private_calls.len(), unregister(&mut world, vm, 0, 32)), (calls, Ok(())));
}
