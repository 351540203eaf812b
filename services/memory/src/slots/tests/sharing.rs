//! VMs beside each other: none takes another's slots, sees them, or is left without.

use super::*;

const OTHER: VmId = VmId::new(4, 0);

fn two() -> Box<Small> {
    let mut slots = table();
    slots.vm_make(OTHER).unwrap();
    slots.region_make(OTHER, Region(4), PAGES, Backing::ORDINARY).unwrap();
    slots
}

fn of_other(id: u16, gfn: u64) -> Wanted {
    Wanted { host: HostAddress { region: Region(4), page: gfn }, ..wanted(id, gfn, 1, 0) }
}

#[test]
fn a_greedy_vm_leaves_the_others_theirs() {
    let mut slots = two();
    let mut got = 0;
    while set(&mut slots, wanted(got, u64::from(got), 1, 0)).is_ok() {
        got += 1;
    }
    assert_eq!(usize::from(got), 1024 - (MAX_VMS - 1) * RESERVED);
    assert_eq!(set(&mut slots, wanted(got, 5000, 1, 0)), Err(Error::Full));
    assert_eq!(Error::Full.status(), Status::Exhausted);
    for id in 0..RESERVED as u16 {
        assert_eq!(slots.set(OTHER, &of_other(id, id.into()), HOST), Ok(Change::Done));
    }
    assert_eq!(slots.set(OTHER, &of_other(99, 99), HOST), Err(Error::Full));
    // What goes is there for anybody.
    set_whole(&mut slots, wanted(0, 0, 0, 0)).unwrap();
    assert_eq!(slots.set(OTHER, &of_other(99, 99), HOST), Ok(Change::Done));
}

#[test]
fn a_vm_sees_and_reaches_its_own_alone() {
    let mut slots = two();
    set(&mut slots, wanted(1, 100, 10, 0)).unwrap();
    assert_eq!(slots.set(OTHER, &of_other(5, 100), HOST), Ok(Change::Done), "the same guest frame");
    assert_eq!(slots.set(OTHER, &wanted(6, 0, 1, 0), HOST), Err(Error::NoRegion));
    assert_eq!(slots.get(OTHER, SlotId(1)), None);
    assert_eq!(slots.next(VM, SlotId(2)), None);
    assert_eq!(slots.fault(OTHER, Gfn(105), HOST), Err(Error::NoSlot));
    let stale = VmId::new(3, 0);
    assert_eq!(slots.fault(stale, Gfn(100), HOST), Err(Error::NoVm));
    assert_eq!(slots.set(stale, &wanted(1, 0, 1, 0), HOST), Err(Error::NoVm));
    assert_eq!(slots.region_make(OTHER, REGION, 5, Backing::ORDINARY), Err(Error::RegionExists));
    assert_eq!(slots.region_make(OTHER, Region(MAX_VMS as u16), 5, Backing::ORDINARY), Err(Error::NoRegion));
    assert_eq!(slots.region_make(OTHER, Region(0), 0, Backing::ORDINARY), Err(Error::Wraps));
    assert_eq!(slots.vm_make(VmId::new(MAX_VMS as u16, 0)), Err(Error::NoVm));
}

#[test]
fn what_a_vm_leaves_is_gone_whole_and_the_others_is_there() {
    let mut slots = two();
    for id in 0..200 {
        set(&mut slots, wanted(id, u64::from(id) * 3, 2, u64::from(id) * 7)).unwrap();
    }
    slots.set(OTHER, &of_other(0, 9), HOST).unwrap();
    slots.hold(VM).unwrap();
    slots.vm_gone(VM);
    slots.vm_gone(VM);
    assert_eq!(slots.len(), 1);
    assert!(slots.is_spurious(&pages(0, PAGES)));
    assert!(!slots.is_spurious(&HostRange { region: Region(4), pages: 9..10 }));
    // The next in its place begins with nothing, even without a farewell.
    slots.vm_make(VM).unwrap();
    slots.region_make(VM, REGION, PAGES, Backing::ORDINARY).unwrap();
    set(&mut slots, wanted(0, 0, 1, 0)).unwrap();
    let next = VmId::new(3, 2);
    slots.vm_make(next).unwrap();
    assert!(!slots.knows(VM));
    assert_eq!((slots.len(), slots.next(next, SlotId(0))), (1, None));
    assert!(slots.region_make(next, REGION, 10, Backing::ORDINARY).is_ok());
}

#[test]
fn no_number_is_too_large_to_be_asked_for() {
    let mut slots = two();
    set(&mut slots, wanted(0, 0, 10, 0)).unwrap();
    for gfn in [END - 1, END, u64::MAX - 1, u64::MAX] {
        assert_eq!(slots.fault(VM, Gfn(gfn), HOST), Err(Error::NoSlot));
        assert_eq!(slots.fault(OTHER, Gfn(gfn), HOST), Err(Error::NoSlot));
    }
    assert_eq!(slots.next(VM, SlotId(u16::MAX)), None);
}
