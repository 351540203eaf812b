//! SEV-SNP pages of 2 MiB: assigned at once, split before part of them goes, joined when all of them turn.

use caisson_core::rmp::RmpError;
use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Gfn, VmId};
use caisson_proto::kernel::*;
use caisson_proto::rmp::{Entry, LARGE, LOCKED};

use super::asids::{bind, map};
use super::snp::{ASID, initialise, private, processor, rmp, run};
use super::system::{FIRMWARE, MEMORY, System, VMM};

/// An SNP VM with an ASID and a large page at gfn 512 and frame 1024.
fn guest(system: &mut System) -> VmId {
    initialise(system);
    let vm = system.vm(VMM, VmKind::SevSnp, 0, 64);
    system.as_service(MEMORY, &map(vm, 512, 1024, 512)).unwrap();
    bind(system, vm, ASID).unwrap();
    vm
}

fn large(vm: VmId) -> GuestConvert {
    GuestConvert { large: true, ..private(vm, 512, 512) }
}

fn shared(convert: GuestConvert) -> GuestConvert {
    GuestConvert { private: false, ..convert }
}

fn span(system: &mut System, vm: VmId, gfn: u64) -> (u64, FrameState) {
    let look = system.as_service(MEMORY, &GuestLook { vm, gfn: Gfn(gfn), pages: 1 }).unwrap();
    (look.span, look.state)
}

const HEAD: Entry = Entry::guest(ASID, Gfn(512), false).sized(512);

#[test]
fn two_mebibytes_turn_at_once() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.machine.did.take();
    system.as_service(FIRMWARE, &large(vm)).unwrap();
    assert_eq!(system.machine.did.take(), ["hidden", "host's translations", "lines", "RMP"]);
    assert_eq!([1024, 1025].map(|frame| rmp(&system, frame)), [HEAD, Entry::SHARED], "its head says it for all");
    assert_eq!(span(&mut system, vm, 700), (512, FrameState::Private));
    system.as_service(FIRMWARE, &shared(large(vm))).unwrap();
    assert_eq!(rmp(&system, 1024), Entry::SHARED);
    assert_eq!(span(&mut system, vm, 700), (512, FrameState::Owned));
}

#[test]
fn part_of_it_is_split_off_first() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &large(vm)).unwrap();
    system.machine.did.take();
    system.as_service(MEMORY, &shared(private(vm, 520, 2))).unwrap();
    assert_eq!(system.machine.did.take().first(), Some(&"PSMASH"));
    let assigned = |gfn| Entry::guest(ASID, Gfn(gfn), false);
    let entries = [1024, 1031, 1032, 1033, 1034, 1535].map(|frame| rmp(&system, frame));
    let (first, last) = (assigned(512), assigned(1023));
    assert_eq!(entries, [first, assigned(519), Entry::SHARED, Entry::SHARED, assigned(522), last]);
    assert_eq!([520, 522].map(|gfn| span(&mut system, vm, gfn)), [(1, FrameState::Owned), (1, FrameState::Private)]);
}

#[test]
fn it_is_joined_when_all_of_it_turns() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 600, 1)).unwrap();
    assert_eq!(span(&mut system, vm, 512), (1, FrameState::Owned));
    system.as_service(FIRMWARE, &shared(private(vm, 600, 1))).unwrap();
    assert_eq!(span(&mut system, vm, 512), (1, FrameState::Owned), "one page doesn't join the rest");
    system.as_service(FIRMWARE, &large(vm)).unwrap();
    assert_eq!(span(&mut system, vm, 512), (512, FrameState::Private));
    assert_eq!(rmp(&system, 1024), HEAD);
}

#[test]
fn small_private_pages_are_joined_when_all_of_them_are_shared() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &private(vm, 512, 100)).unwrap();
    system.as_service(FIRMWARE, &private(vm, 612, 412)).unwrap();
    assert_eq!(span(&mut system, vm, 512), (1, FrameState::Private));
    system.as_service(FIRMWARE, &shared(large(vm))).unwrap();
    assert_eq!(span(&mut system, vm, 700), (512, FrameState::Owned));
    assert!((1024..1536).all(|frame| rmp(&system, frame) == Entry::SHARED));
    // What is refused in the middle stays small, as the RMP has it.
    system.as_service(FIRMWARE, &private(vm, 512, 100)).unwrap();
    system.as_service(FIRMWARE, &private(vm, 612, 412)).unwrap();
    processor(&system, 1100, Entry([rmp(&system, 1100).0[0] | LOCKED, 0]));
    assert_eq!(system.as_service(FIRMWARE, &shared(large(vm))).err(), Some(Status::State));
    assert_eq!([512, 1023].map(|gfn| span(&mut system, vm, gfn)), [(1, FrameState::Owned), (1, FrameState::Private)]);
}

#[test]
fn frames_that_do_not_lie_in_a_row_stay_small() {
    let mut system = System::new(1);
    initialise(&mut system);
    let vm = system.vm(VMM, VmKind::SevSnp, 0, 64);
    system.as_service(MEMORY, &map(vm, 512, 1024, 256)).unwrap();
    system.as_service(MEMORY, &map(vm, 768, 1281, 255)).unwrap();
    system.as_service(MEMORY, &map(vm, 1023, 1280, 1)).unwrap();
    bind(&mut system, vm, ASID).unwrap();
    system.as_service(FIRMWARE, &large(vm)).unwrap();
    assert_eq!(span(&mut system, vm, 512), (1, FrameState::Private));
    assert!((1024..1536).all(|frame| !rmp(&system, frame).has(LARGE)));
}

#[test]
fn part_of_it_is_freed_after_a_split_and_all_of_it_at_once() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    system.as_service(FIRMWARE, &large(vm)).unwrap();
    let unmap = |gfn, pages| GuestUnmap { vm, view: 0, gfn: Gfn(gfn), pages, more: true, broken: false };
    // The fake machine unmaps no part of a large page: what was split in the RMP only is split in the tables by the next turn.
    let head = system.machine.mailbox.unwrap().rmp.0;
    assert_eq!(head.update(Frame(1030), Entry::SHARED), Err(RmpError::Overlap), "freeing part of it without a split");
    assert_eq!(head.update(Frame(1024), Entry::SHARED), Err(RmpError::Overlap), "also its head");
    let unmapped = system.as_service(MEMORY, &unmap(512, 512)).unwrap();
    assert_eq!((unmapped.pages, unmapped.waiting), (512, 512), "such a VM pays at each call");
    assert_eq!(rmp(&system, 1024), Entry::SHARED);
    assert_eq!(run(&mut system, 1300).state, FrameState::Quarantined);
}

#[test]
fn what_the_rmp_refuses_stays_whole() {
    let mut system = System::new(1);
    let vm = guest(&mut system);
    processor(&system, 1030, Entry::FIRMWARE);
    assert_eq!(system.as_service(FIRMWARE, &large(vm)).err(), Some(Status::State), "a frame of it is another's");
    assert_eq!(span(&mut system, vm, 512), (512, FrameState::Owned));
    processor(&system, 1030, Entry::SHARED);
    // It disappeared from the handler, as before any turn; private it can become.
    system.as_service(FIRMWARE, &large(vm)).unwrap();
    processor(&system, 1024, Entry([HEAD.0[0] | LOCKED, HEAD.0[1]]));
    assert_eq!(system.as_service(FIRMWARE, &shared(large(vm))).err(), Some(Status::State), "somebody is changing it");
    assert_eq!(span(&mut system, vm, 512), (512, FrameState::Private));
}
