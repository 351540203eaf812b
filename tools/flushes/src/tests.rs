//! The order of the policies, and that the bound is one.

use crate::policy::Policy;
use crate::run::Machine;
use crate::trace::{CHUNK, Event, Kind, Trace, Vm};
use crate::{bound, caisson, linux, run};

const PAGES: u64 = 8 * CHUNK;

fn bound(trace: &Trace, frames: u64) -> u64 {
    bound::bound(trace, frames, 4)
}

/// A VM runs on two CPUs and ends, another begins.
fn successors() -> Trace {
    let vm = Vm { pages: PAGES, vcpus: 1 };
    let events = [
        Event::Start(0),
        Event::Run(0, 0, 0),
        Event::Run(0, 0, 1),
        Event::Stop(0),
        Event::Start(1),
        Event::Run(1, 0, 0),
    ];
    let events = (0..).zip(events).collect();
    Trace { kind: Kind::Churn, cpus: 3, vms: vec![vm; 2], events }
}

/// A VM gives memory back and takes it again; with `other`, somebody had it in between.
fn balloon(other: bool) -> Trace {
    let vms = vec![Vm { pages: PAGES * 2, vcpus: 1 }, Vm { pages: PAGES, vcpus: 1 }];
    let mut events = vec![Event::Start(0), Event::Run(0, 0, 2), Event::Give(0, 0, 10)];
    if other {
        events.extend([Event::Start(1), Event::Run(1, 0, 1), Event::Stop(1)]);
    }
    events.push(Event::Take(0, 0, 10));
    Trace { kind: Kind::Balloon, cpus: 3, vms, events: (0..).zip(events).collect() }
}

#[test]
fn each_policy_is_dearer_than_the_next_and_none_beats_the_bound() {
    for kind in Kind::ALL {
        let machine = Machine { kind, cpus: 16, free: 10 };
        let row = run::row(machine, 4).unwrap();
        let counts: Vec<_> = row.lines().map(|(_, count)| count).collect();
        assert!(counts.is_sorted_by(|dearer, cheaper| dearer >= cheaper), "{kind:?}: {counts:?}");
        assert!(row.bound > 0);
        let lost = row.costs.map(|cost| cost.lost);
        assert!(lost[0] > 0 && lost[1..] == [0; 3], "WBNOINVD keeps lines valid: {lost:?}");
        assert_eq!(run::row(machine, 4).unwrap(), row, "the same each time");
    }
}

#[test]
fn memory_that_changes_hands_takes_a_flush_of_each_cpu_that_ran_its_owner() {
    let trace = successors();
    let frames = trace.frames(0);
    assert_eq!(bound(&trace, frames), 2);
    assert_eq!(linux::cost(&trace, Policy::EverRan).executions, 2);
    assert_eq!(linux::cost(&trace, Policy::AllWbnoinvd).executions, 3);
    assert_eq!(linux::cost(&trace, Policy::AllWbinvd).executions, 6);
    assert_eq!(caisson::cost(&trace, frames).unwrap().executions, 2);
    // Who never flushes is found by it.
    assert!(0 < bound(&trace, frames));
}

#[test]
fn four_cpus_together_say_more_than_each_by_itself() {
    // Four VMs, each on a CPU of its own, end one after the other; then memory is there for all of them but two, or one, or none.
    let vm = Vm { pages: PAGES, vcpus: 1 };
    let ends = (0..4).flat_map(|vm| [Event::Start(vm), Event::Run(vm, 0, vm as u16), Event::Stop(vm)]);
    let events = ends.chain([Event::Start(4)]);
    let trace = Trace { kind: Kind::Churn, cpus: 4, vms: vec![vm; 5], events: (0..).zip(events).collect() };
    // Each CPU by itself never owes for more than one VM.
    assert_eq!([1, 2, 3, 4, 5].map(|vms| bound(&trace, vms * PAGES)), [4, 3, 2, 1, 0]);
}

#[test]
fn larger_groups_say_no_less_and_no_policy_beats_the_largest() {
    let machine = Machine { kind: Kind::Churn, cpus: 16, free: 10 };
    let rows: Vec<_> = [1, 2, 4, 8].map(|size| run::row(machine, size).unwrap()).into();
    assert!(rows.is_sorted_by_key(|row| row.bound), "{rows:?}");
    let ([first, .., last], caisson) = (&rows[..], rows[0].costs[Policy::ALL.len() - 1]) else { unreachable!() };
    assert!(first.bound < last.bound && last.bound <= caisson.executions, "{rows:?}");
}

#[test]
fn where_nothing_changes_hands_nothing_is_bound_to_happen() {
    let trace = successors();
    assert_eq!(bound(&trace, 2 * trace.frames(0)), 0, "there is memory for both");
    let trace = balloon(false);
    assert_eq!(bound(&trace, trace.frames(0)), 0, "its own frames come back");
    let trace = balloon(true);
    assert_eq!(bound(&trace, trace.frames(0)), 2, "they were another's: there and back");
}

#[test]
fn a_trace_that_needs_more_memory_than_there_is_fails() {
    let trace = successors();
    assert!(caisson::cost(&trace, PAGES - 1).is_err());
}

#[test]
fn asids_that_are_used_up_take_wbinvd_everywhere_under_every_policy() {
    let vm = Vm { pages: CHUNK, vcpus: 1 };
    let count = crate::trace::ASIDS + 1;
    let events = (0..count).flat_map(|vm| [Event::Start(vm), Event::Stop(vm)]);
    let trace = Trace { kind: Kind::Churn, cpus: 3, vms: vec![vm; count], events: (0..).zip(events).collect() };
    assert_eq!(bound(&trace, 2 * trace.frames(0)), 3, "although no VM ever ran");
    for policy in Policy::ALL {
        let cost = match policy {
            Policy::Caisson => caisson::cost(&trace, 2 * trace.frames(0)).unwrap(),
            linux => linux::cost(&trace, linux),
        };
        let reclaims = if policy == Policy::AllWbinvd { 2 * count as u64 * 3 } else { 0 };
        assert_eq!(cost.wbinvds, 3 + reclaims, "{policy:?}");
    }
}
