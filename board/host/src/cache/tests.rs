//! What caches do, and what is corruption.

use super::*;

const VM: u32 = 7;
const FRAME: u64 = 3;

/// A frame that is a VM's under ASID 5, with a dirty line on CPU 0.
fn dirty() -> Caches {
    let mut caches = Caches::new(2, 16);
    caches.install_key(5, 55);
    caches.give(FRAME, Hand::Private(VM));
    caches.write(0, FRAME, 5, VM, 1);
    caches
}

#[test]
fn aliases_are_not_coherent_and_cpus_are() {
    let mut caches = dirty();
    assert_eq!(caches.read(1, FRAME, 5), 1);
    assert_eq!(caches.read(1, FRAME, 0), 0, "plainly memory still reads zero");
    caches.write_back(0, true);
    assert_eq!(caches.read(0, FRAME, 5), 1, "cpu1 has it, and memory has it encrypted");
    caches.flush(FRAME, 1, 0);
    assert_ne!(caches.read(0, FRAME, 0), 1);
    assert_eq!(caches.take_broken(), None);
}

#[test]
fn an_encrypted_line_over_anybody_elses_frame_is_corruption() {
    for hand in [Hand::Kernel, Hand::Shared(8), Hand::Private(8), Hand::Firmware] {
        let mut caches = dirty();
        caches.give(FRAME, hand);
        caches.write_back(1, false);
        assert_eq!(caches.take_broken(), None);
        caches.write_back(0, false);
        assert!(caches.take_broken().is_some(), "{hand:?}");
    }
    let mut caches = dirty();
    caches.give(FRAME, Hand::Nobody);
    caches.write_back(0, false);
    assert_eq!(caches.take_broken(), None);
}

#[test]
fn a_line_from_before_a_page_turned_shared_is_corruption_and_a_mad_guests_is_not() {
    for mad in [false, true] {
        let mut caches = dirty();
        caches.give(FRAME, Hand::Shared(VM));
        caches.step += 1;
        if mad {
            caches.write(0, FRAME, 5, VM, 2);
        }
        caches.write_back(0, false);
        assert_eq!(caches.take_broken().is_some(), !mad);
    }
}

#[test]
fn a_plain_line_over_a_private_frame_is_corruption() {
    for hand in [Hand::Private(VM), Hand::Firmware] {
        let mut caches = Caches::new(1, 16);
        caches.write(0, FRAME, 0, VM, 1);
        caches.give(FRAME, hand);
        caches.evict_hot();
        assert!(caches.take_broken().is_some(), "{hand:?}");
    }
}

#[test]
fn every_alias_is_evicted_some_time() {
    let evicted = |seed| {
        let mut caches = dirty();
        caches.read(0, FRAME, 0);
        caches.evict(&Rng::new(seed), FRAME + 1);
        [0, 5].map(|asid| caches.places[FRAME as usize].line(asid).is_none())
    };
    assert_eq!((0..64).map(evicted).collect::<BTreeSet<_>>(), [[false; 2], [false, true], [true, false]].into());
}

#[test]
fn a_recycled_asid_leaves_nothing() {
    let mut caches = dirty();
    caches.write_back(0, false);
    caches.remove_key(5);
    caches.install_key(5, 66);
    assert!(caches.take_broken().is_some(), "WBNOINVD leaves the line valid");
    let mut caches = dirty();
    caches.write_back(0, true);
    caches.remove_key(5);
    caches.install_key(5, 66);
    assert!(caches.take_broken().is_some(), "the fabric wasn't flushed");
    let mut caches = dirty();
    caches.write_back(0, true);
    caches.flush_fabric();
    caches.remove_key(5);
    caches.install_key(5, 66);
    assert_eq!(caches.take_broken(), None);
    assert_ne!(caches.read(0, FRAME, 5), 1, "memory was written with another key");
}
