//! Every error of the instructions on the RMP, by who executes them, and what holds after any sequence of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use caisson_core::rmp::{Rmp, RmpError};
use caisson_proto::addr::{Frame, Gfn, Gpa};
use caisson_proto::rmp::{Entry, IMMUTABLE, LARGE, LOCKED, VALIDATED, VMSA};
use caisson_qemu_sev_cpu::guest::{Attributes, Guest, Mismatch, Page, Refused, pvalidate, rmpadjust};
use caisson_qemu_sev_cpu::host::{SmashError, psmash};
use caisson_qemu_sev_cpu::vmpl::{ALL, Vmpl, rights};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const FRAMES: u64 = 1536;
const ASID: u32 = 3;
const GUEST: Guest = Guest { asid: ASID, vmpl: Vmpl::Zero };

fn table() -> Rmp {
    Rmp((0..FRAMES).map(|_| [const { AtomicU64::new(0) }; 2]).collect::<Vec<_>>().leak())
}

fn small(gfn: u64, frame: u64) -> Page {
    Page { gpa: Gpa(gfn << 12), frame: Frame(frame), large: false, nested_large: false }
}

fn large(gfn: u64, frame: u64) -> Page {
    Page { large: true, nested_large: true, ..small(gfn, frame) }
}

fn assign(rmp: Rmp, frame: u64, gfn: u64, bits: u64) {
    let Entry([low, _]) = Entry::guest(ASID, Gfn(gfn), false);
    rmp.update(Frame(frame), Entry([low | bits, 0])).unwrap();
}

fn set(rmp: Rmp, frame: u64, bits: u64) {
    let Entry([low, high]) = rmp.get(Frame(frame)).unwrap();
    rmp.set(Frame(frame), Entry([low | bits, high]));
}

fn entry(rmp: Rmp, frame: u64) -> Entry {
    rmp.get(Frame(frame)).unwrap()
}

const NOT_OWN: Result<bool, Refused> = Err(Refused::Nested(Mismatch::Owner));

#[test]
fn a_guest_accepts_its_own_page_once() {
    let rmp = table();
    assign(rmp, 9, 5, 0);
    assert_eq!(pvalidate(rmp, GUEST, small(5, 9), true), Ok(true));
    assert!(entry(rmp, 9).has(VALIDATED));
    assert_eq!(pvalidate(rmp, GUEST, small(5, 9), true), Ok(false), "carry: it is accepted already");
    assert_eq!([Vmpl::Zero, Vmpl::One, Vmpl::Three].map(|vmpl| rights(entry(rmp, 9), vmpl)), [ALL, 0, 0]);
    assert_eq!(pvalidate(rmp, GUEST, small(5, 9), false), Ok(true));
    assert_eq!(pvalidate(rmp, GUEST, small(5, 9), false), Ok(false));
    // The host takes it away and gives it back: the guest has to accept it anew.
    pvalidate(rmp, GUEST, small(5, 9), true).unwrap();
    rmp.update(Frame(9), Entry::SHARED).unwrap();
    assign(rmp, 9, 5, 0);
    assert_eq!(pvalidate(rmp, GUEST, small(5, 9), true), Ok(true));
}

#[test]
fn nobody_elses_page_is_accepted() {
    let rmp = table();
    assert_eq!(pvalidate(rmp, GUEST, small(5, 9), true), NOT_OWN, "the host's");
    assert_eq!(pvalidate(rmp, GUEST, small(5, FRAMES), true), NOT_OWN, "not covered");
    assign(rmp, 9, 5, 0);
    assert_eq!(pvalidate(rmp, GUEST, small(6, 9), true), NOT_OWN, "at another address");
    assert_eq!(pvalidate(rmp, Guest { asid: 4, ..GUEST }, small(5, 9), true), NOT_OWN, "another guest's");
    for bits in [IMMUTABLE, LOCKED] {
        assign(rmp, 10, 5, 0);
        set(rmp, 10, bits);
        assert_eq!(pvalidate(rmp, GUEST, small(5, 10), true), NOT_OWN, "the processor's, to fill");
        rmp.set(Frame(10), Entry::SHARED);
    }
    let below = Guest { vmpl: Vmpl::One, ..GUEST };
    assert_eq!(pvalidate(rmp, below, small(5, 9), true), Err(Refused::Permission));
    assert!(!entry(rmp, 9).has(VALIDATED));
}

#[test]
fn sizes_have_to_agree() {
    let rmp = table();
    assign(rmp, 512, 1024, LARGE);
    assert_eq!(pvalidate(rmp, GUEST, large(1025, 512), true), Err(Refused::Input), "not aligned");
    assert_eq!(pvalidate(rmp, GUEST, large(1024, 513), true), Err(Refused::Input));
    let size = Err(Refused::Nested(Mismatch::Size));
    assert_eq!(pvalidate(rmp, GUEST, small(1024, 512), true), size, "the host has to smash it");
    assert_eq!(pvalidate(rmp, GUEST, small(1031, 519), true), size);
    assert_eq!(pvalidate(rmp, GUEST, small(1030, 519), true), NOT_OWN);
    assert_eq!(pvalidate(rmp, GUEST, small(3, 519), true), NOT_OWN, "so low that no page of 2 MiB reaches from there");
    let nested_small = Page { nested_large: false, ..large(1024, 512) };
    assert_eq!(pvalidate(rmp, GUEST, nested_small, true), Err(Refused::SizeMismatch));
    assert_eq!(pvalidate(rmp, GUEST, large(1024, 512), true), Ok(true));
    psmash(rmp, Frame(512)).unwrap();
    assert_eq!(pvalidate(rmp, GUEST, large(1024, 512), false), Err(Refused::SizeMismatch), "one by one then");
    assert_eq!(pvalidate(rmp, GUEST, small(1031, 519), true), Ok(false), "each was accepted with the one");
    let nested_large = Page { nested_large: true, ..small(1031, 519) };
    assert_eq!(pvalidate(rmp, GUEST, nested_large, false), size, "the nested page has to be split, too");
    assert_eq!(Refused::SizeMismatch.eax(), Some(6));
    assert_eq!([Refused::Input, Refused::Permission].map(Refused::eax), [Some(1), Some(2)]);
    assert_eq!(Refused::Nested(Mismatch::Size).eax(), None);
}

#[test]
fn a_large_entry_is_smashed_and_nothing_else() {
    let rmp = table();
    assert_eq!(psmash(rmp, Frame(512)), Err(SmashError::Page), "the host's");
    assert_eq!(psmash(rmp, Frame(FRAMES)), Err(SmashError::Input));
    assign(rmp, 512, 1024, LARGE);
    assert_eq!(psmash(rmp, Frame(513)), Err(SmashError::Input));
    assert_eq!(rmp.update(Frame(519), Entry::SHARED), Err(RmpError::Overlap), "part of it isn't freed");
    set(rmp, 512, LOCKED);
    assert_eq!(psmash(rmp, Frame(512)), Err(SmashError::InUse));
    rmp.set(Frame(512), Entry([entry(rmp, 512).0[0] & !LOCKED | IMMUTABLE, 0]));
    assert_eq!(psmash(rmp, Frame(512)), Err(SmashError::Page), "the processor's");
    rmp.set(Frame(512), Entry([entry(rmp, 512).0[0] & !IMMUTABLE | VALIDATED, 0xf]));
    psmash(rmp, Frame(512)).unwrap();
    assert_eq!(psmash(rmp, Frame(512)), Err(SmashError::Page), "it is small already");
    assert_eq!([SmashError::Input, SmashError::InUse, SmashError::Page].map(|error| error as u32), [1, 3, 7]);
    for page in [0, 7, 511] {
        let Entry([low, rights]) = Entry::guest(ASID, Gfn(1024 + page), false);
        assert_eq!(entry(rmp, 512 + page), Entry([low | VALIDATED, rights]));
    }
    assert_eq!(entry(rmp, 1024), Entry::SHARED);
    rmp.update(Frame(519), Entry::SHARED).unwrap();
}

#[test]
fn a_level_gives_lower_ones_what_it_has() {
    let rmp = table();
    assign(rmp, 9, 5, 0);
    let page = small(5, 9);
    let to = |target, rights| Attributes { target, rights, vmsa: false };
    let not_accepted = Err(Refused::Nested(Mismatch::Owner));
    assert_eq!(rmpadjust(rmp, GUEST, page, to(Vmpl::One, 1)), not_accepted);
    pvalidate(rmp, GUEST, page, true).unwrap();
    assert_eq!(rmpadjust(rmp, GUEST, page, to(Vmpl::Zero, ALL)), Err(Refused::Permission), "its own level");
    rmpadjust(rmp, GUEST, page, to(Vmpl::One, 3)).unwrap();
    let one = Guest { vmpl: Vmpl::One, ..GUEST };
    assert_eq!(rmpadjust(rmp, one, page, to(Vmpl::Two, 4)), Err(Refused::Permission), "more than it has");
    for target in [Vmpl::Zero, Vmpl::One] {
        assert_eq!(rmpadjust(rmp, one, page, to(target, 0)), Err(Refused::Permission), "{target:?}");
    }
    rmpadjust(rmp, one, page, to(Vmpl::Three, 1)).unwrap();
    let all = [Vmpl::Zero, Vmpl::One, Vmpl::Two, Vmpl::Three].map(|vmpl| rights(entry(rmp, 9), vmpl));
    assert_eq!(all, [ALL, 3, 0, 1]);
    // Whether it is a save area is VMPL 0's to say.
    let area = Attributes { vmsa: true, ..to(Vmpl::Three, 0) };
    rmpadjust(rmp, one, page, area).unwrap();
    assert!(!entry(rmp, 9).has(VMSA));
    rmpadjust(rmp, GUEST, page, area).unwrap();
    assert!(entry(rmp, 9).has(VMSA));
    rmpadjust(rmp, one, page, to(Vmpl::Three, 0)).unwrap();
    assert!(entry(rmp, 9).has(VMSA), "nor to unmake");
    // Who gives a page up and accepts it again hasn't changed anything else.
    let before = entry(rmp, 9);
    pvalidate(rmp, GUEST, page, false).unwrap();
    pvalidate(rmp, GUEST, page, true).unwrap();
    assert_eq!(entry(rmp, 9), before);
}

#[test]
fn a_register_that_means_nothing_is_refused() {
    let expected = Attributes { target: Vmpl::Two, rights: 5, vmsa: true };
    assert_eq!(Attributes::from_register(0x1_0502), Ok(expected));
    for bad in [4, 0x1000, 0x2_0000, 1 << 63, 0xff] {
        assert_eq!(Attributes::from_register(bad), Err(Refused::Input), "{bad:#x}");
    }
}

/// Frames that are acted on, in two pages of 2 MiB.
const ACTED_ON: [u64; 6] = [0, 1, 511, 512, 513, 1023];

/// Whatever host and guests do: a guest's acceptance is of one page at one address, and ends with the host's change.
#[test]
fn what_is_accepted_stays_where_it_was() {
    let config = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    let act = (0..8_u8, prop::sample::select(&ACTED_ON), 1..3_u32, prop::sample::select(&ACTED_ON), any::<bool>());
    let smashed = Cell::new(0);
    let property = |acts| {
        let rmp = table();
        rmp.update(Frame(512), Entry([Entry::guest(1, Gfn(512), false).0[0] | LARGE, 0])).unwrap();
        // What each guest accepted, by its own account: frame and gfn. Of a page of 2 MiB it is the first.
        let mut accepted = BTreeMap::new();
        for (act, frame, asid, gfn, yes) in acts {
            let guest = Guest { asid, vmpl: Vmpl::Zero };
            let head = frame & !511;
            let mut accept = |page: Page| match pvalidate(rmp, guest, page, yes) {
                Ok(_) if yes => drop(accepted.insert(page.frame.0, (asid, page.gpa.0 >> 12))),
                Ok(_) => drop(accepted.remove(&page.frame.0)),
                Err(_) => {}
            };
            match act {
                0 | 1 => {
                    let (at, gfn, bits) = if act == 0 { (frame, gfn, 0) } else { (head, head, LARGE) };
                    let to = if yes { Entry::guest(asid, Gfn(gfn), false) } else { Entry::SHARED };
                    if rmp.update(Frame(at), Entry([to.0[0] | bits, 0])).is_ok() {
                        accepted.remove(&at);
                    }
                }
                2 | 3 => accept(small(gfn, frame)),
                4 | 5 => accept(large(head, head)),
                6 => {
                    let page = if yes { large(head, head) } else { small(gfn, frame) };
                    let _ = rmpadjust(rmp, guest, page, Attributes { target: Vmpl::One, rights: 1, vmsa: gfn == 0 });
                }
                _ => {
                    let done = psmash(rmp, Frame(head)).is_ok();
                    if let Some((asid, gfn)) = accepted.get(&head).copied().filter(|_| done) {
                        accepted.extend((0..512).map(|page| (head + page, (asid, gfn + page))));
                        smashed.set(smashed.get() + 1);
                    }
                }
            }
            for frame in ACTED_ON.into_iter().chain([2, 700]) {
                let entry = entry(rmp, frame);
                let is = entry.has(VALIDATED).then(|| (entry.asid(), entry.gpa().0 >> 12));
                prop_assert_eq!(is, accepted.get(&frame).copied(), "frame {}", frame);
            }
        }
        Ok(())
    };
    TestRunner::new(config).run(&prop::collection::vec(act, 1..64), property).unwrap();
    assert!(smashed.get() > 0, "no page of 2 MiB was smashed that its guest had accepted");
}
