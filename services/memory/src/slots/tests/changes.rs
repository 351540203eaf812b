//! Swaps: what goes is invalid first, and nothing is swapped while a notification is open.

use super::*;

#[test]
fn the_same_again_changes_nothing() {
    let mut slots = table();
    assert_eq!(set(&mut slots, wanted(7, 100, 10, 5)), Ok(Change::Done));
    assert_eq!(set(&mut slots, wanted(7, 100, 10, 5)), Ok(Change::Nothing));
    slots.hold(VM).unwrap();
    assert_eq!(set(&mut slots, wanted(7, 100, 10, 5)), Ok(Change::Nothing), "even while nothing may change");
}

#[test]
fn a_slot_that_is_deleted_is_invalid_until_it_is_empty() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 5)).unwrap();
    let delete = wanted(0, 0, 0, 0);
    assert_eq!(set(&mut slots, delete), Ok(Change::Emptying));
    assert_eq!(slots.fault(VM, Gfn(105), HOST), Err(Error::Busy));
    assert!(!slots.get(VM, SlotId(0)).unwrap().valid);
    assert_eq!(slots.to_empty(VM), Some((Gfn(100), 10)));
    assert_eq!(slots.emptied(VM, Gfn(104)), Ok(Change::Emptying));
    assert_eq!(slots.emptied(VM, Gfn(102)), Ok(Change::Emptying), "it never goes back");
    assert_eq!(slots.to_empty(VM), Some((Gfn(104), 6)));
    assert_eq!(set(&mut slots, delete), Ok(Change::Emptying), "the same request goes on with it");
    assert_eq!(set(&mut slots, wanted(1, 0, 1, 0)), Err(Error::Busy), "and no other");
    assert!(!slots.is_spurious(&pages(5, 6)), "what is mapped still has to be found");
    assert_eq!(slots.emptied(VM, Gfn(110)), Ok(Change::Done));
    assert_eq!(slots.fault(VM, Gfn(105), HOST), Err(Error::NoSlot));
    assert_eq!((slots.get(VM, SlotId(0)), slots.to_empty(VM), slots.len()), (None, None, 0));
    assert_eq!(slots.emptied(VM, Gfn(110)), Err(Error::Absent));
    assert!(slots.is_spurious(&pages(0, PAGES)));
}

#[test]
fn a_slot_that_is_moved_appears_where_it_goes_when_it_is_empty() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 5)).unwrap();
    let moved = Wanted { flags: SlotFlags::LOG_DIRTY, ..wanted(0, 105, 10, 5) };
    assert_eq!(set(&mut slots, moved), Ok(Change::Emptying), "it may overlap itself");
    assert_eq!(slots.fault(VM, Gfn(112), HOST), Err(Error::NoSlot));
    assert_eq!(slots.to_empty(VM), Some((Gfn(100), 10)), "where it was");
    assert_eq!(slots.emptied(VM, Gfn(110)), Ok(Change::Done));
    let shown = slots.fault(VM, Gfn(112), HOST).unwrap();
    assert_eq!((shown.host.page, shown.pages, shown.writable), (12, 3, true));
    assert_eq!(slots.fault(VM, Gfn(104), HOST), Err(Error::NoSlot));
    assert_eq!(slots.get(VM, SlotId(0)).unwrap().flags, SlotFlags::LOG_DIRTY);
}

#[test]
fn nothing_is_swapped_while_a_notification_is_open() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 5)).unwrap();
    slots.hold(VM).unwrap();
    slots.hold(VM).unwrap();
    for change in [wanted(1, 0, 1, 0), wanted(0, 0, 0, 0), wanted(0, 50, 10, 5)] {
        assert_eq!(set(&mut slots, change), Err(Error::Busy));
        slots.release(VM).unwrap();
        assert_eq!(set(&mut slots, change), Err(Error::Busy), "until the last has ended");
        slots.hold(VM).unwrap();
    }
    assert_eq!(set(&mut slots, wanted(1, 105, 1, 0)), Err(Error::Overlaps), "what is wrong is told all the same");
    slots.release(VM).unwrap();
    slots.release(VM).unwrap();
    assert_eq!(slots.release(VM), Err(Error::Absent));
    assert_eq!(set_whole(&mut slots, wanted(0, 50, 10, 5)), Ok(Change::Done));
}

#[test]
fn one_that_was_being_emptied_waits_for_the_end_too() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 5)).unwrap();
    set(&mut slots, wanted(0, 0, 0, 0)).unwrap();
    slots.hold(VM).unwrap();
    assert_eq!(slots.emptied(VM, Gfn(110)), Err(Error::Busy));
    assert!(slots.get(VM, SlotId(0)).is_some());
    slots.release(VM).unwrap();
    assert_eq!(slots.to_empty(VM), Some((Gfn(110), 0)), "what was reached is remembered");
    assert_eq!(slots.emptied(VM, Gfn(0)), Ok(Change::Done));
}
