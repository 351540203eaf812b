//! gmems and their bindings: each rule both ways. What is done to their pages is tested by messages.

use caisson_proto::abi::Status;
use caisson_proto::slots::SlotId;

use super::*;

type Small = Gmems<16, 8>;

const VM: VmId = VmId::new(2, 0);
const OTHER: VmId = VmId::new(3, 0);
const SLOT: SlotId = SlotId(5);
const BASE: u64 = 1024;

/// A gmem of 2,048 pages, of which pages 512 to 1,535 are shown at guest frame 1,024.
fn made() -> (Box<Small>, GmemId) {
    let mut gmems = Box::new(Small::new());
    let id = gmems.create(VM, 0, 2048 << 12).unwrap();
    gmems.bind(VM, SLOT, Gfn(BASE), 1024, id, 512 << 12).unwrap();
    (gmems, id)
}

#[test]
fn making_one() {
    let mut gmems = Small::new();
    assert_eq!(gmems.create(VM, 1, 4096), Err(Error::BadFlags));
    for bytes in [0, 1, 4095, 4097, u64::MAX, (END + 1) << 12] {
        assert_eq!(gmems.create(VM, 0, bytes), Err(Error::BadSize), "{bytes}");
    }
    assert_eq!(Error::BadFlags.status(), Status::Invalid);
    assert_eq!(Error::BadSize.status(), Status::Invalid);
    assert!(gmems.create(VM, 0, END << 12).is_ok());
    for _ in 1..GMEMS_OF_A_VM {
        gmems.create(VM, 0, 4096).unwrap();
    }
    assert_eq!(gmems.create(VM, 0, 4096), Err(Error::Full));
    assert!(gmems.create(OTHER, 0, 4096).is_ok(), "of a VM's own");
    assert_eq!(Error::Full.status(), Status::Exhausted);
}

#[test]
fn binding_it() {
    let (mut gmems, id) = made();
    let mut bind = |vm, slot, pages, offset| gmems.bind(vm, SlotId(slot), Gfn(9000), pages, id, offset);
    assert_eq!(bind(OTHER, 6, 1, 0), Err(Error::OtherVm));
    assert_eq!(bind(VM, 6, 1, 1), Err(Error::Unaligned));
    assert_eq!(bind(VM, 6, 0, 0), Err(Error::BadSize));
    for (pages, offset) in [(2049, 0), (1, 2048 << 12), (u64::MAX, 0), (2, 2047 << 12)] {
        assert!(matches!(bind(VM, 6, pages, offset), Err(Error::PastEnd | Error::BadSize)), "{pages} {offset}");
    }
    for (pages, offset) in [(1, 512), (1, 1535), (513, 0), (2048, 0), (600, 1000)] {
        assert_eq!(bind(VM, 6, pages, offset << 12), Err(Error::Bound), "{pages} {offset}");
    }
    assert_eq!(bind(VM, SLOT.0, 1, 0), Err(Error::Bound), "the slot has pages");
    for error in [Error::OtherVm, Error::Unaligned, Error::PastEnd, Error::Bound] {
        assert_eq!(error.status(), Status::Invalid);
    }
    assert_eq!(bind(VM, 6, 512, 0), Ok(()));
    assert_eq!(bind(VM, 7, 512, 1536 << 12), Ok(()));
    assert_eq!(gmems.unbind(VM, SlotId(8)), Err(Error::NotBound));
    assert_eq!(gmems.unbind(VM, SlotId(6)), Ok(()));
    assert_eq!(gmems.bind(VM, SlotId(9), Gfn(0), 512, id, 0), Ok(()), "they are free again");
    assert_eq!(gmems.bind(VM, SlotId(10), Gfn(0), 1, GmemId(9), 0), Err(Error::NoGmem));
}

#[test]
fn what_a_slot_shows_of_it() {
    let (gmems, id) = made();
    let at = |page| GmemAddress { gmem: id, page };
    assert_eq!(gmems.binding(VM, SLOT, Gfn(BASE)), Ok(at(512)));
    assert_eq!(gmems.binding(VM, SLOT, Gfn(BASE + 1023)), Ok(at(1535)));
    for gfn in [BASE - 1, BASE + 1024] {
        assert_eq!(gmems.binding(VM, SLOT, Gfn(gfn)), Err(Error::PastEnd));
    }
    assert_eq!(gmems.binding(VM, SlotId(1), Gfn(BASE)), Err(Error::NotBound));
    assert_eq!(gmems.binding(OTHER, SLOT, Gfn(BASE)), Err(Error::NotBound));
}

#[test]
fn a_binding_to_a_gmem_that_is_gone_is_stale() {
    let (mut gmems, id) = made();
    gmems.poison(GmemAddress { gmem: id, page: 600 }).unwrap();
    assert_eq!(gmems.destroy(id, true), Err(Error::Busy));
    assert_eq!(gmems.destroy(id, false), Ok(()));
    assert_eq!(gmems.destroy(id, false), Err(Error::NoGmem));
    assert_eq!(gmems.binding(VM, SLOT, Gfn(BASE)), Err(Error::Stale));
    assert_eq!(Error::Stale.status(), Status::Unbound);
    let next = gmems.create(VM, 0, 2048 << 12).unwrap();
    assert_eq!(next, id, "in the same place");
    assert!(!gmems.any_poisoned(GmemAddress { gmem: id, page: 0 }, 2048));
    assert_eq!(gmems.binding(VM, SLOT, Gfn(BASE)), Err(Error::Stale));
    assert_eq!(gmems.bind(VM, SlotId(6), Gfn(0), 1024, next, 512 << 12), Ok(()));
    assert_eq!(gmems.unbind(VM, SLOT), Ok(()));
    assert_eq!(gmems.bind(VM, SLOT, Gfn(BASE), 1, next, 512 << 12), Err(Error::Bound), "the new one's is still there");
}

#[test]
fn nothing_is_left_of_a_vm_that_is_gone() {
    let (mut gmems, id) = made();
    let frames = 0..100;
    gmems.reserve(VM, &frames).unwrap();
    gmems.set_private(VM, &frames, true);
    assert!(gmems.count_private(VM, &(0..END)) > 0 && gmems.is_private(VM, Gfn(99)) && !gmems.is_private(VM, Gfn(100)));
    assert!(gmems.count_private(OTHER, &(0..END)) == 0 && !gmems.is_private(OTHER, Gfn(0)));
    gmems.vm_gone(VM);
    assert!(gmems.count_private(VM, &(0..END)) == 0);
    assert_eq!(gmems.of(VM, id), Err(Error::NoGmem));
    assert_eq!(gmems.create(OTHER, 0, 4096), Ok(id));
    assert_eq!(gmems.bits.left(), 16);
}

#[test]
fn nobody_is_left_without_room_for_private_frames() {
    // Two pieces for each VM, and six times as many for whoever comes first.
    let mut gmems = Box::new(Gmems::<{ MAX_VMS * 8 }, 1>::new());
    let mut taken = 0;
    while gmems.reserve(VM, &(taken * 512..taken * 512 + 1)).is_ok() {
        gmems.set_private(VM, &(taken * 512..taken * 512 + 1), true);
        taken += 1;
    }
    assert_eq!(taken, MAX_VMS as u64 * 8 - (MAX_VMS as u64 - 1) * 2);
    for piece in 0..2 {
        gmems.reserve(OTHER, &(piece * 512..piece * 512 + 1)).unwrap();
        gmems.set_private(OTHER, &(piece * 512..piece * 512 + 1), true);
    }
    assert_eq!(gmems.reserve(OTHER, &(1024..1025)), Err(Error::Full));
    assert_eq!(
        gmems.poison(GmemAddress { gmem: GmemId(0), page: 0 }),
        Err(Error::Full),
        "nor is it taken for broken ones"
    );
    gmems.reserve(VM, &(0..512)).unwrap();
}

#[test]
fn room_is_reserved_before_anything_is_noted() {
    let mut gmems = Gmems::<1, 1>::new();
    assert_eq!(gmems.reserve(VM, &(500..600)), Err(Error::Full));
    gmems.reserve(VM, &(0..100)).unwrap();
    assert_eq!(gmems.reserve(OTHER, &(0..1)), Err(Error::Full));
    gmems.trim(VM, &(0..100));
    gmems.reserve(OTHER, &(0..1)).unwrap();
    gmems.set_private(OTHER, &(0..1), true);
    gmems.trim(OTHER, &(0..1));
    assert!(gmems.is_private(OTHER, Gfn(0)), "what is needed stays");
    assert_eq!(gmems.poison(GmemAddress { gmem: GmemId(0), page: 0 }), Err(Error::Full));
}
