//! The three ways agree on what they do, so that their times can be compared.

use std::sync::atomic::Ordering;

use crate::layout::{Kind, LENGTH, REGION, STRIDE};
use crate::vm::Vm;
use crate::ways::{Caisson, Ways, ranges};
use crate::{costs, locks, unmap};

/// With a stack on which the largest table has room: without optimisation it is there for a moment.
fn large(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(test).expect("a thread");
    assert!(thread.join().is_ok());
}

#[test]
fn all_ways_unmap_the_same_and_fault_alike() {
    large(|| {
        let mut ways = Ways::new(32, 4).unwrap();
        for gfn in (0..REGION).step_by(7).filter(|gfn| *gfn < 17 * STRIDE || *gfn > REGION - 17 * STRIDE) {
            let faults = [ways.caisson.fault(gfn), ways.linux.fault(gfn), ways.naive.fault(gfn)];
            let shown = gfn % STRIDE < LENGTH && !(16 * STRIDE..REGION - 16 * STRIDE).contains(&gfn);
            assert_eq!(faults, [shown; 3]);
        }
        for range in [0..1, 120..140, 128..256, 300..1000, 16 * STRIDE..40 * STRIDE] {
            while ways.caisson.event(&range) {}
            ways.linux.event(&range);
            ways.naive.event(&range);
            let left = [&ways.caisson.kernel.vm, &ways.linux.vm, &ways.naive.vm].map(|vm| {
                let (was, _) = vm.unmap(range.clone(), u64::MAX);
                was
            });
            assert_eq!(left, [0; 3], "{range:?}");
        }
        let rest = [&ways.caisson.kernel.vm, &ways.linux.vm, &ways.naive.vm].map(|vm| vm.unmap(0..REGION, u64::MAX).0);
        assert!(rest[0] > 0 && rest == [rest[0]; 3]);
        let told = |vm: &Vm| vm.reclaimed.load(Ordering::Relaxed);
        assert_eq!((told(&ways.caisson.kernel.vm), told(&ways.linux.vm)), (3, 3), "spurious events tell nobody");
    });
}

#[test]
fn caisson_takes_no_lock_and_allocates_nothing() {
    large(|| {
        for kind in Kind::ALL {
            let cost = costs::measure(kind, 100, 8, 1).unwrap();
            assert_eq!((cost.locks[0], cost.allocations[0]), (0, 0));
            assert!(cost.locks[1] >= 2 && cost.locks[2] == 2, "the count counts: {:?}", cost.locks);
        }
        let before = locks::taken();
        let counted = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(5))));
        assert_eq!((counted.count_total, locks::taken()), (1, before), "so does the allocator's");
    });
}

#[test]
fn one_flush_for_an_event_over_many_slots() {
    large(|| {
        assert_eq!(costs::flushes(40).unwrap(), [1, 1, 40]);
    });
}

#[test]
fn a_large_unmap_ends() {
    large(|| {
        let unmap = unmap::measure(1 << 14, 1).unwrap();
        assert!(unmap.inside.iter().all(|time| *time > 0.0));
    });
}

#[test]
fn as_many_slots_as_there_may_be() {
    let with = |slots: u64| Caisson::new(&ranges(slots), REGION, Vm::new(REGION, 1)).is_ok();
    large(move || {
        assert!(with(32_764));
        assert!(!with(32_765));
    });
}
