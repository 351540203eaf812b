//! How a VM's pages stand.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Gfn, VmId};
use caisson_proto::kernel::*;

use super::asids::{self, NOBODY, map};
use super::system::{FIRMWARE, MEMORY, System, VMM};

fn look(system: &mut System, vm: VmId, gfn: u64, pages: u64) -> (u64, FrameState, u64, Frame) {
    let look = system.as_service(MEMORY, &GuestLook { vm, gfn: Gfn(gfn), pages }).unwrap();
    (look.pages, look.state, look.span, look.frame)
}

#[test]
fn runs_of_pages_that_are_alike() {
    let mut system = System::new(1);
    let vm = asids::guest(&mut system);
    system.as_service(MEMORY, &map(vm, 1024, 1024, 512)).unwrap();
    let private = GuestConvert { vm, gfn: Gfn(2), pages: 2, private: true, large: false };
    system.as_service(FIRMWARE, &private).unwrap();
    assert_eq!(look(&mut system, vm, 8, 512), (512, FrameState::Free, 0, Frame(0)));
    assert_eq!(look(&mut system, vm, 1020, 512), (4, FrameState::Free, 0, Frame(0)));
    assert_eq!(look(&mut system, vm, 0, 512), (2, FrameState::Owned, 1, Frame(512)));
    assert_eq!(look(&mut system, vm, 2, 512), (2, FrameState::Private, 1, Frame(514)));
    assert_eq!(look(&mut system, vm, 3, 1), (1, FrameState::Private, 1, Frame(515)));
    assert_eq!(look(&mut system, vm, 4, 3), (3, FrameState::Owned, 1, Frame(516)));
    assert_eq!(look(&mut system, vm, 1030, 512), (506, FrameState::Owned, 512, Frame(1030)));
}

#[test]
fn where_there_is_something_to_look_at() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 0, 64);
    let of = |gfn, pages| GuestLook { vm, gfn: Gfn(gfn), pages };
    for (gfn, pages) in [(0, 0), (0, 513), ((1 << 40) - 1, 1)] {
        assert_eq!(system.as_service(MEMORY, &of(gfn, pages)).err(), Some(Status::Range));
    }
    let nobody = GuestLook { vm: NOBODY, gfn: Gfn(0), pages: 1 };
    assert_eq!(system.as_service(MEMORY, &nobody).err(), Some(Status::Dead));
}

#[test]
fn a_plain_vms_page_turns_private_and_back() {
    let mut system = System::new(1);
    let vm = system.vm(VMM, VmKind::Plain, 0, 64);
    system.as_service(MEMORY, &map(vm, 0, 512, 4)).unwrap();
    let seen = |system: &System| system.machine.window.borrow().keys().map(|(_, gfn)| *gfn).collect::<Vec<_>>();
    let convert = |private| GuestConvert { vm, gfn: Gfn(1), pages: 2, private, large: true };
    assert_eq!(
        system.as_service(FIRMWARE, &convert(true)).err(),
        Some(Status::State),
        "it isn't the firmware's affair"
    );
    system.as_service(MEMORY, &convert(true)).unwrap();
    assert_eq!(seen(&system), [0, 3]);
    assert_eq!(look(&mut system, vm, 1, 4), (2, FrameState::Private, 1, Frame(513)));
    assert_eq!(system.as_service(MEMORY, &convert(true)).err(), Some(Status::State), "it is so already");
    system.as_service(MEMORY, &convert(false)).unwrap();
    assert_eq!(seen(&system), [0, 1, 2, 3]);
    assert_eq!(look(&mut system, vm, 1, 4), (3, FrameState::Owned, 1, Frame(513)), "the same frames");
}
