//! RMPUPDATE: every error, and what any sequence of updates leaves.

use std::sync::atomic::AtomicU64;

use caisson_core::rmp::{Rmp, RmpError};
use caisson_proto::addr::{Frame, Gfn, Gpa};
use caisson_proto::rmp::{ASSIGNED, Entry, IMMUTABLE, LARGE, LOCKED, VALIDATED, VMSA};
use proptest::prelude::*;

fn table() -> Rmp {
    Rmp((0..1536).map(|_| [const { AtomicU64::new(0) }; 2]).collect::<Vec<_>>().leak())
}

fn large(asid: u32, gfn: u64) -> Entry {
    let Entry([low, high]) = Entry::guest(asid, Gfn(gfn), false);
    Entry([low | LARGE, high])
}

#[test]
fn an_entry_says_whose_a_frame_is() {
    let entry = Entry::guest(0x3ff, Gfn(0x7f_ffff_ffff), true);
    assert_eq!((entry.asid(), entry.gpa()), (0x3ff, Gpa(0x7_ffff_ffff_f000)));
    assert!(entry.has(ASSIGNED) && entry.has(IMMUTABLE) && !entry.has(LARGE | VMSA | VALIDATED | LOCKED));
    assert_eq!(Entry::guest(5, Gfn(7), false), Entry([1 | 7 << 12 | 5 << 51, 0xf]));
    assert_eq!((Entry::FIRMWARE.0[0], Entry::SHARED.0[0]), (5, 0));
}

#[test]
fn what_is_no_entry_is_refused() {
    let rmp = table();
    assert_eq!(rmp.update(Frame(1536), Entry::FIRMWARE), Err(RmpError::Input), "not covered");
    assert_eq!(rmp.update(Frame(u64::MAX), Entry::FIRMWARE), Err(RmpError::Input));
    assert_eq!(rmp.update(Frame(1), large(3, 0)), Err(RmpError::Input), "not aligned");
    assert_eq!(rmp.update(Frame(0), Entry([3 << 51, 0])), Err(RmpError::Input), "the host has no ASID");
    assert_eq!(rmp.update(Frame(0), Entry([IMMUTABLE, 0])), Err(RmpError::Input), "and can change what is its own");
    assert_eq!(rmp.get(Frame(0)), Some(Entry::SHARED));
    assert_eq!(rmp.get(Frame(1536)), None);
}

#[test]
fn the_processors_page_is_not_the_hosts_to_change() {
    let rmp = table();
    for entry in [Entry::FIRMWARE, Entry::guest(3, Gfn(1), true)] {
        rmp.update(Frame(9), entry).unwrap();
        assert_eq!(rmp.update(Frame(9), Entry::SHARED), Err(RmpError::Permission));
        assert_eq!(rmp.update(Frame(9), entry), Err(RmpError::Permission));
        // The processor gives it back.
        rmp.set(Frame(9), Entry([entry.0[0] & !IMMUTABLE, 0]));
        rmp.update(Frame(9), Entry::SHARED).unwrap();
        assert_eq!(rmp.get(Frame(9)), Some(Entry::SHARED));
    }
}

#[test]
fn who_changes_an_entry_changes_it_alone() {
    let rmp = table();
    rmp.set(Frame(9), Entry([LOCKED, 0]));
    assert_eq!(rmp.update(Frame(9), Entry::FIRMWARE), Err(RmpError::InUse));
}

#[test]
fn sizes_do_not_overlap() {
    let rmp = table();
    rmp.update(Frame(512), large(3, 0)).unwrap();
    for small in [512, 513, 1023] {
        assert_eq!(rmp.update(Frame(small), Entry::SHARED), Err(RmpError::Overlap), "part of a large page isn't freed");
        assert_eq!(rmp.update(Frame(small), Entry::guest(3, Gfn(9), false)), Err(RmpError::Overlap));
    }
    rmp.update(Frame(512), Entry([LARGE, 0])).unwrap();
    for small in [512, 700] {
        rmp.update(Frame(small), Entry::guest(3, Gfn(9), false)).unwrap();
        assert_eq!(rmp.update(Frame(512), large(3, 0)), Err(RmpError::Overlap), "{small}");
        rmp.update(Frame(small), Entry::SHARED).unwrap();
    }
    rmp.update(Frame(512), large(3, 0)).unwrap();
}

#[test]
fn nothing_of_the_guests_own_survives() {
    let rmp = table();
    rmp.set(Frame(9), Entry([ASSIGNED | VALIDATED | VMSA | 3 << 51, 0xf0f]));
    let Entry([low, _]) = Entry::guest(4, Gfn(2), false);
    rmp.update(Frame(9), Entry([low | VALIDATED | VMSA | LOCKED, u64::MAX])).unwrap();
    assert_eq!(rmp.get(Frame(9)), Some(Entry([low, 0xf])), "for VMPL 0 alone");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// No two entries ever cover one frame, and a refused update changes nothing.
    #[test]
    fn a_frame_has_one_owner(updates in prop::collection::vec((0_u64..1536, 0_u32..4, any::<bool>(), any::<bool>()), 1..64)) {
        let rmp = table();
        for (frame, asid, is_large, immutable) in updates {
            let frame = if is_large { Frame(frame & !511) } else { Frame(frame) };
            let mut entry = if asid == 0 { Entry::SHARED } else { Entry::guest(asid, Gfn(frame.0), immutable) };
            entry.0[0] |= if is_large { LARGE } else { 0 };
            let all = || (0..1536).map(|frame| rmp.get(Frame(frame)).unwrap()).collect::<Vec<_>>();
            let before = all();
            if rmp.update(frame, entry).is_err() {
                prop_assert_eq!(all(), before);
            } else {
                let pages = if is_large { 512 } else { 1 };
                let after = all();
                let changed = (0..1536).filter(|at| after[*at] != before[*at]);
                prop_assert!(changed.map(|at| at as u64).all(|at| at >= frame.0 && at < frame.0 + pages));
                prop_assert!(!before[frame.0 as usize].has(IMMUTABLE));
            }
            for head in (0..1536).step_by(512).filter(|head| rmp.get(Frame(*head)).unwrap().has(LARGE)) {
                prop_assert!((head + 1..head + 512).all(|at| !rmp.get(Frame(at)).unwrap().has(ASSIGNED)));
            }
        }
    }
}
