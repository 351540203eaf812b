//! The three ways agree on what they do, so that their times can be compared.

use std::sync::atomic::Ordering;

use crate::layout::{Kind, LENGTH, STRIDE};
use crate::ways::{Caisson, Ways, ranges};
use crate::{costs, locks, unmap};

#[test]
fn all_ways_unmap_the_same_and_fault_alike() {
    let mut ways = Ways::new(32, 4).unwrap();
    for gfn in (0..32 * STRIDE).step_by(7) {
        let faults = [ways.caisson.fault(gfn), ways.linux.fault(gfn), ways.naive.fault(gfn)];
        assert_eq!(faults, [gfn % STRIDE < LENGTH; 3]);
    }
    for range in [0..1, 60..70, 64..128, 100..1000, 32 * STRIDE..40 * STRIDE] {
        while ways.caisson.event(&range) {}
        ways.linux.event(&range);
        ways.naive.event(&range);
        let left = [&ways.caisson.kernel.vm, &ways.linux.vm, &ways.naive.vm].map(|vm| {
            let (was, _) = vm.unmap(range.clone(), u64::MAX);
            was
        });
        assert_eq!(left, [0; 3], "{range:?}");
    }
    let rest = [&ways.caisson.kernel.vm, &ways.linux.vm, &ways.naive.vm].map(|vm| vm.unmap(0..32 * STRIDE, u64::MAX).0);
    assert!(rest[0] > 0 && rest == [rest[0]; 3]);
    let told = |vm: &crate::vm::Vm| vm.reclaimed.load(Ordering::Relaxed);
    assert_eq!((told(&ways.caisson.kernel.vm), told(&ways.linux.vm)), (3, 3), "spurious events tell nobody");
}

#[test]
fn caisson_takes_no_lock_and_allocates_nothing() {
    for kind in Kind::ALL {
        let cost = costs::measure(kind, 100, 8, 1).unwrap();
        assert_eq!((cost.locks[0], cost.allocations[0]), (0, 0));
        assert!(cost.locks[1] >= 2 && cost.locks[2] == 2, "the count counts: {:?}", cost.locks);
    }
    let before = locks::taken();
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(5))));
    assert_eq!((counted.count_total, locks::taken()), (1, before), "so does the allocator's");
}

#[test]
fn one_flush_for_an_event_over_many_slots() {
    assert_eq!(costs::flushes(40).unwrap(), [1, 1, 40]);
}

#[test]
fn a_large_unmap_ends() {
    let unmap = unmap::measure(1 << 14, 1).unwrap();
    assert!(unmap.inside.iter().all(|time| *time > 0.0));
}

#[test]
fn as_many_slots_as_there_may_be() {
    let vm = crate::vm::Vm::new(1 << 23, 1);
    assert!(Caisson::new(&ranges(32_764), 1 << 23, vm).is_ok());
    let vm = crate::vm::Vm::new(1 << 23, 1);
    assert!(Caisson::new(&ranges(32_765), 1 << 23, vm).is_err());
}
