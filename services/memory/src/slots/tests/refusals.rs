//! What is refused, and what stands beside it and isn't.

use super::*;

#[test]
fn bytes_must_be_whole_pages() {
    let bytes = |gpa, length, offset| Wanted::bytes(SlotId(0), SlotFlags::empty(), gpa, length, REGION, offset);
    assert_eq!(bytes(0x1000, 0x2000, 0x3000), Ok(wanted(0, 1, 2, 3)));
    for (gpa, length, offset) in [(0x1001, 0x2000, 0x3000), (0x1000, 0x2800, 0x3000), (0x1000, 0x2000, 0x3fff)] {
        assert_eq!(bytes(gpa, length, offset), Err(Error::Unaligned));
    }
    assert_eq!(Error::Unaligned.status(), Status::Invalid);
}

#[test]
fn ranges_that_wrap_are_invalid() {
    let mut slots = table();
    assert_eq!(set(&mut slots, wanted(0, END - 1, 2, 0)), Err(Error::Wraps));
    assert_eq!(set(&mut slots, wanted(0, u64::MAX, 1, 0)), Err(Error::Wraps));
    assert_eq!(set(&mut slots, wanted(0, 1, u64::MAX, 0)), Err(Error::Wraps));
    assert_eq!(set(&mut slots, wanted(0, 0, 1, u64::MAX)), Err(Error::Wraps));
    let far = GmemAddress { gmem: GmemId(0), page: END - 1 };
    assert_eq!(set(&mut slots, Wanted { gmem: far, ..with_gmem(0, 0, 2, 0) }), Err(Error::Wraps));
    assert_eq!(Error::Wraps.status(), Status::Invalid);
    assert_eq!(set(&mut slots, wanted(0, END - 2, 2, 0)), Ok(Change::Done));
}

#[test]
fn a_slot_lies_in_its_region() {
    let mut slots = table();
    assert_eq!(set(&mut slots, wanted(0, 0, 2, PAGES - 1)), Err(Error::PastEnd));
    assert_eq!(Error::PastEnd.status(), Status::Invalid);
    assert_eq!(set(&mut slots, wanted(0, 0, 2, PAGES - 2)), Ok(Change::Done));
    let elsewhere = HostAddress { region: Region(2), page: 0 };
    assert_eq!(set(&mut slots, Wanted { host: elsewhere, ..wanted(1, 50, 1, 0) }), Err(Error::NoRegion));
    assert_eq!(Error::NoRegion.status(), Status::NotFound);
}

#[test]
fn flags_must_go_together() {
    let mut slots = table();
    for flag in [SlotFlags::READ_ONLY, SlotFlags::LOG_DIRTY] {
        let both = Wanted { flags: SlotFlags::GMEM | flag, ..with_gmem(0, 0, 1, 0) };
        assert_eq!(slots.set(VM, &both, COHERENT), Err(Error::BadFlags));
        assert_eq!(
            slots.set(VM, &Wanted { flags: flag, ..both }, COHERENT),
            Err(Error::BadFlags),
            "a gmem without its flag"
        );
    }
    let allowed = Wanted { flags: SlotFlags::READ_ONLY | SlotFlags::LOG_DIRTY, ..wanted(0, 0, 1, 0) };
    assert_eq!(set(&mut slots, allowed), Ok(Change::Done));
}

#[test]
fn ids_end_where_they_end() {
    let mut slots = table();
    assert_eq!(set(&mut slots, wanted(MAX_SLOTS as u16, 0, 1, 0)), Err(Error::BadId));
    assert_eq!(set(&mut slots, wanted(MAX_SLOTS as u16 - 1, 0, 1, 0)), Ok(Change::Done));
}

#[test]
fn guest_frames_show_one_thing() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 0)).unwrap();
    for (gfn, pages) in [(100, 10), (109, 1), (95, 6), (0, 1000), (104, 2)] {
        assert_eq!(set(&mut slots, wanted(1, gfn, pages, 500)), Err(Error::Overlaps), "{gfn} {pages}");
    }
    assert_eq!(Error::Overlaps.status(), Status::Exists);
    assert_eq!(set(&mut slots, wanted(1, 110, 1, 500)), Ok(Change::Done));
    assert_eq!(set(&mut slots, wanted(2, 99, 1, 0)), Ok(Change::Done), "and may show the same memory twice");
}

#[test]
fn what_must_not_change_of_a_slot() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 0)).unwrap();
    assert_eq!(set(&mut slots, wanted(0, 100, 10, 1)), Err(Error::HostChanged));
    assert_eq!(set(&mut slots, wanted(0, 100, 11, 0)), Err(Error::SizeChanged));
    let read_only = Wanted { flags: SlotFlags::READ_ONLY, ..wanted(0, 100, 10, 0) };
    assert_eq!(set(&mut slots, read_only), Err(Error::ReadOnlyChanged));
    let logged = Wanted { flags: SlotFlags::LOG_DIRTY, ..wanted(0, 100, 10, 0) };
    assert_eq!(set(&mut slots, logged), Ok(Change::Done));
    assert_eq!(slots.get(VM, SlotId(0)).unwrap().flags, SlotFlags::LOG_DIRTY);
    for error in [Error::HostChanged, Error::SizeChanged, Error::ReadOnlyChanged, Error::GmemFixed, Error::Absent] {
        assert_eq!(error.status(), Status::Invalid);
    }
}

#[test]
fn what_must_not_change_is_told_before_what_overlaps() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 0)).unwrap();
    set(&mut slots, wanted(1, 200, 10, 0)).unwrap();
    assert_eq!(set(&mut slots, wanted(1, 100, 11, 0)), Err(Error::SizeChanged));
    assert_eq!(set(&mut slots, wanted(1, 100, 10, 0)), Err(Error::Overlaps));
}

#[test]
fn a_slot_that_isnt_there_cant_be_deleted() {
    let mut slots = table();
    assert_eq!(set(&mut slots, wanted(0, 0, 0, 0)), Err(Error::Absent));
    set(&mut slots, wanted(0, 0, 5, 0)).unwrap();
    assert_eq!(set_whole(&mut slots, wanted(0, 77, 0, 77)), Ok(Change::Done), "whatever else is said");
    assert_eq!(set(&mut slots, wanted(0, 0, 0, 0)), Err(Error::Absent));
}

#[test]
fn a_slot_with_a_gmem_is_deleted_or_stays_as_it_is() {
    let mut slots = table();
    let slot = with_gmem(0, 100, 10, 0);
    assert_eq!(slots.set(VM, &slot, COHERENT), Ok(Change::Done));
    for change in [slot, Wanted { gfn: Gfn(0), ..slot }, wanted(0, 100, 10, 0)] {
        assert_eq!(slots.set(VM, &change, COHERENT), Err(Error::GmemFixed));
    }
    assert_eq!(set_whole(&mut slots, Wanted { pages: 0, ..slot }), Ok(Change::Done));
    set(&mut slots, wanted(0, 100, 10, 0)).unwrap();
    assert_eq!(slots.set(VM, &slot, COHERENT), Err(Error::GmemFixed), "nor does one get a gmem");
}

/// Memory behind a device, which is to be cached.
const FOREIGN: Region = Region(5);

fn with_foreign() -> Box<Small> {
    let mut slots = table();
    slots.region_make(VM, FOREIGN, PAGES, Backing::FOREIGN).unwrap();
    slots
}

fn foreign(id: u16, gfn: u64) -> Wanted {
    Wanted { host: HostAddress { region: FOREIGN, page: gfn }, ..wanted(id, gfn, 1, 0) }
}

#[test]
fn memory_that_cant_be_flushed_is_refused_when_the_slot_is_made() {
    let mut slots = with_foreign();
    assert_eq!(slots.set(VM, &foreign(0, 0), HOST), Err(Error::Incoherent));
    assert_eq!(Error::Incoherent.status(), Status::Unsupported);
    assert_eq!(slots.set(VM, &foreign(0, 0), COHERENT), Ok(Change::Done));
    assert!(slots.fault(VM, Gfn(0), COHERENT).is_ok());
    assert_eq!(slots.fault(VM, Gfn(0), HOST), Err(Error::Incoherent), "and again at the fault");
    assert_eq!(slots.set(VM, &with_gmem(1, 10, 1, 0), HOST), Ok(Change::Done), "the kernel flushes what it manages");
}

#[test]
fn restoring_a_table_where_it_cant_be_kept_fails_at_its_slots() {
    let mut from = with_foreign();
    from.set(VM, &wanted(0, 20, 10, 20), COHERENT).unwrap();
    from.set(VM, &foreign(1, 10), COHERENT).unwrap();
    let restore = |to: &mut Small, host| {
        let mut id = SlotId(0);
        while let Some(slot) = from.next(VM, id) {
            let Slot { id: of, flags, gfn, pages, host: shows, gmem, .. } = *slot;
            to.set(VM, &Wanted { id: of, flags, gfn, pages, host: shows, gmem }, host)?;
            id = SlotId(of.0 + 1);
        }
        Ok::<_, Error>(to.len())
    };
    assert_eq!(restore(&mut with_foreign(), COHERENT), Ok(2));
    assert_eq!(restore(&mut with_foreign(), HOST), Err(Error::Incoherent));
}
