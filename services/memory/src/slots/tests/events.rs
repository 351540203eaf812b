//! Events: work if and only if a slot shows the range; one flush, one hull, bounded steps.

use super::*;

fn event(slots: &mut Small, range: &HostRange, fake: &mut Fake) -> Answer {
    slots.event(range, 512, fake).unwrap()
}

#[test]
fn what_no_slot_shows_asks_the_machine_nothing() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 50)).unwrap();
    let (mut fake, before) = (Fake { refuse: true, ..Fake::default() }, slots.counts(VM));
    for range in
        [pages(0, 50), pages(60, PAGES), pages(60, 60), pages(55, 50), pages(PAGES, u64::MAX), pages(u64::MAX, 0)]
    {
        assert_eq!(event(&mut slots, &range, &mut fake), Answer::Spurious, "{range:?}");
    }
    for region in [Region(0), Region(4), Region(u16::MAX)] {
        assert_eq!(event(&mut slots, &HostRange { region, pages: 0..END }, &mut fake), Answer::Spurious);
    }
    assert_eq!(slots.counts(VM), before);
    assert_eq!(set(&mut slots, wanted(1, 0, 1, 0)), Ok(Change::Done), "nothing is open");
}

#[test]
fn bytes_touch_the_pages_that_they_lie_in() {
    let bytes = |start, end| HostRange::bytes(REGION, start, end);
    assert_eq!(bytes(0x1000, 0x2000), pages(1, 2), "an aligned end doesn't touch the next");
    assert_eq!(bytes(0x1fff, 0x2001), pages(1, 3));
    assert_eq!(bytes(0x1001, 0x1002), pages(1, 2));
    assert!(bytes(0x1000, 0x1000).is_empty());
    assert!(bytes(0x2000, 0x1000).is_empty());
    assert_eq!(bytes(u64::MAX - 1, u64::MAX).pages.end, 1 << 52);
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 1, 2)).unwrap();
    assert!(slots.is_spurious(&bytes(0x1000, 0x2000)));
    assert!(!slots.is_spurious(&bytes(0x1000, 0x2001)));
    assert!(!slots.is_spurious(&bytes(0x2fff, 0x3000)));
    assert!(slots.is_spurious(&bytes(0x3000, 0x4000)));
}

#[test]
fn one_flush_one_beginning_and_one_end_over_all_slots() {
    let mut slots = table();
    for id in 0..40 {
        set(&mut slots, wanted(id, 1000 + u64::from(id) * 20, 10, u64::from(id) * 10)).unwrap();
    }
    let mut fake = Fake::default();
    assert_eq!(event(&mut slots, &pages(5, 395), &mut fake), Answer::Done);
    assert_eq!((fake.flushes, fake.ended, fake.reclaimed), (1, 1, 1));
    assert_eq!(fake.begun, [(1005, 1785)], "the hull");
    assert_eq!(fake.unmapped.len(), 390);
    assert!(!fake.unmapped.contains(&1004) && !fake.unmapped.contains(&1785) && !fake.unmapped.contains(&1010));
    assert_eq!(slots.counts(VM), (1, 1));
}

#[test]
fn its_owner_hears_of_it_even_if_nothing_was_mapped() {
    let mut slots = table();
    set(&mut slots, wanted(0, 100, 10, 0)).unwrap();
    let mut fake = Fake { unmapped: (0..1000).collect(), ..Fake::default() };
    assert_eq!(event(&mut slots, &pages(0, 5), &mut fake), Answer::Done);
    assert_eq!((fake.flushes, fake.ended, fake.reclaimed), (0, 1, 1));
    assert_eq!(slots.counts(VM), (1, 0), "a request always counts, a flush only if something was done");
}

#[test]
fn a_call_unmaps_so_many_pages_and_says_that_there_is_more() {
    let mut slots = table();
    set(&mut slots, wanted(0, 0, 700, 0)).unwrap();
    set(&mut slots, wanted(1, 5000, 700, 100)).unwrap();
    let (mut fake, mut calls) = (Fake::default(), 1);
    while event(&mut slots, &pages(0, 900), &mut fake) == Answer::More {
        assert!(fake.unmapped.len() <= calls * 512);
        assert_eq!((fake.ended, fake.reclaimed), (0, 0));
        assert_eq!(set(&mut slots, wanted(2, 9000, 1, 0)), Err(Error::Busy), "swaps wait for the end");
        assert_eq!(slots.event(&pages(0, 901), 512, &mut fake), Err(Error::Busy), "so does another range");
        assert_eq!(slots.event(&pages(5000, 5001), 512, &mut fake), Ok(Answer::Spurious), "but no spurious one");
        assert_eq!(slots.fault(VM, Gfn(699), HOST), Err(Error::Busy), "in the hull");
        calls += 1;
    }
    assert_eq!((calls, fake.unmapped.len(), fake.flushes), (3, 1400, 3));
    assert_eq!((fake.begun.len(), fake.ended), (1, 1));
    assert!(slots.fault(VM, Gfn(699), HOST).is_ok());
    assert_eq!(set(&mut slots, wanted(2, 9000, 1, 0)), Ok(Change::Done));
}

#[test]
fn a_frame_outside_the_hull_isnt_touched_by_an_event() {
    let mut slots = table();
    set(&mut slots, wanted(0, 0, 2000, 0)).unwrap();
    set(&mut slots, wanted(1, 5000, 10, 90_000)).unwrap();
    let mut fake = Fake::default();
    assert_eq!(event(&mut slots, &pages(0, 1000), &mut fake), Answer::More);
    assert_eq!(slots.fault(VM, Gfn(999), HOST), Err(Error::Busy));
    assert!(slots.fault(VM, Gfn(1000), HOST).is_ok());
    assert!(slots.fault(VM, Gfn(5000), HOST).is_ok());
}

#[test]
fn many_slots_without_pages_are_looked_at_in_bounded_steps() {
    let mut slots = table();
    for id in 0..200 {
        set(&mut slots, wanted(id, u64::from(id), 1, u64::from(id))).unwrap();
    }
    let (mut fake, mut calls) = (Fake { unmapped: (0..1000).collect(), ..Fake::default() }, 1);
    while event(&mut slots, &pages(0, 1000), &mut fake) == Answer::More {
        calls += 1;
    }
    assert_eq!(calls, 200usize.div_ceil(OPERATIONS as usize));
}

#[test]
fn what_the_machine_refuses_is_gone_on_with() {
    let mut slots = table();
    set(&mut slots, wanted(0, 0, 700, 0)).unwrap();
    let mut fake = Fake { refuse: true, ..Fake::default() };
    assert_eq!(slots.event(&pages(0, 700), 512, &mut fake), Err(Error::Machine(Status::Exhausted)));
    assert_eq!(set_whole(&mut slots, wanted(1, 1000, 1, 0)), Ok(Change::Done), "what didn't begin isn't open");
    fake.refuse = false;
    assert_eq!(event(&mut slots, &pages(0, 700), &mut fake), Answer::More);
    fake.refuse = true;
    assert_eq!(slots.event(&pages(0, 700), 512, &mut fake), Err(Error::Machine(Status::Exhausted)));
    assert_eq!(fake.flushes, 1);
    (fake.refuse, fake.stuck) = (false, true);
    assert_eq!(slots.event(&pages(0, 700), 512, &mut fake), Err(Error::Machine(Status::Busy)), "it doesn't advance");
    fake.stuck = false;
    assert_eq!(event(&mut slots, &pages(0, 700), &mut fake), Answer::Done);
    assert_eq!(
        (fake.unmapped.len(), fake.begun.len(), fake.ended),
        (701, 1, 1),
        "slot 1 shows the region's first page, too"
    );
}
