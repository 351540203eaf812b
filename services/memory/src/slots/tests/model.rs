//! The table against a model that is a list.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Set(Wanted),
    Event(u64, u64),
    Hold,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = (0..12u16, 0..60u64, 0..20u64, 0..80u64, any::<bool>()).prop_map(|(id, gfn, pages, page, log)| {
        let flags = if log { SlotFlags::LOG_DIRTY } else { SlotFlags::empty() };
        Wanted { flags, ..wanted(id, gfn, pages, page) }
    });
    prop_oneof![
        8 => slot.prop_map(Step::Set),
        3 => (0..110u64, 0..30u64).prop_map(|(from, pages)| Step::Event(from, pages)),
        1 => Just(Step::Hold),
        1 => Just(Step::Release),
    ]
}

/// What the rules say, of a list.
fn expected(list: &[Wanted], wanted: &Wanted, held: bool) -> Result<Change, Error> {
    let old = list.iter().find(|slot| slot.id == wanted.id);
    let others = || list.iter().filter(|slot| slot.id != wanted.id);
    let overlaps =
        || others().any(|slot| slot.gfn.0 < wanted.gfn.0 + wanted.pages && wanted.gfn.0 < slot.gfn.0 + slot.pages);
    let change = match old {
        None if wanted.pages == 0 => return Err(Error::Absent),
        None if overlaps() => return Err(Error::Overlaps),
        Some(_) if wanted.pages == 0 => Change::Done,
        Some(old) if old.host != wanted.host => return Err(Error::HostChanged),
        Some(old) if old.pages != wanted.pages => return Err(Error::SizeChanged),
        Some(old) if old == wanted => return Ok(Change::Nothing),
        Some(old) if old.gfn != wanted.gfn && overlaps() => return Err(Error::Overlaps),
        _ => Change::Done,
    };
    if held { Err(Error::Busy) } else { Ok(change) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Every answer, every guest frame and every range of host addresses are what the list says.
    #[test]
    fn it_is_a_list_of_slots(steps in prop::collection::vec(step(), 0..50)) {
        let (mut slots, mut list, mut holds) = (table(), std::vec::Vec::<Wanted>::new(), 0);
        for step in steps {
            match step {
                Step::Set(wanted) => {
                    let right = expected(&list, &wanted, holds > 0);
                    prop_assert_eq!(set_whole(&mut slots, wanted), right);
                    if right == Ok(Change::Done) {
                        list.retain(|slot| slot.id != wanted.id);
                        list.extend((wanted.pages > 0).then_some(wanted));
                    }
                }
                Step::Event(from, count) => {
                    let range = pages(from, from + count);
                    let shown = list.iter().flat_map(|slot| (0..slot.pages).map(|n| (slot.gfn.0 + n, slot.host.page + n)));
                    let right: std::collections::BTreeSet<u64> =
                        shown.filter(|(_, page)| range.pages.contains(page)).map(|(gfn, _)| gfn).collect();
                    let mut fake = Fake::default();
                    prop_assert_eq!(slots.is_spurious(&range), right.is_empty());
                    let answer = slots.event(&range, 512, &mut fake).unwrap();
                    prop_assert_eq!(answer, if right.is_empty() { Answer::Spurious } else { Answer::Done });
                    prop_assert_eq!(&fake.begun, &match (right.first(), right.last()) {
                        (Some(first), Some(last)) => vec![(*first, last + 1)],
                        _ => vec![],
                    });
                    prop_assert_eq!(fake.flushes, u32::from(!right.is_empty()));
                    prop_assert_eq!(fake.unmapped, right);
                }
                Step::Hold => {
                    slots.hold(VM).unwrap();
                    holds += 1;
                }
                Step::Release => {
                    prop_assert_eq!(slots.release(VM).is_ok(), holds > 0);
                    holds = i32::max(holds - 1, 0);
                }
            }
            prop_assert_eq!(slots.len(), list.len());
            for gfn in 0..82 {
                let right = list.iter().find(|slot| (slot.gfn.0..slot.gfn.0 + slot.pages).contains(&gfn));
                let shown = slots.fault(VM, Gfn(gfn), HOST);
                prop_assert_eq!(shown.map(|shown| (shown.slot, shown.host.page)).ok(), right.map(|slot| (slot.id, slot.host.page + gfn - slot.gfn.0)));
            }
        }
    }
}
