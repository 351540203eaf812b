//! What holds for every trace; and that nobody changes one unnoticed.

use std::collections::BTreeSet;

use super::*;

const CPUS: [u16; 5] = [16, 32, 64, 128, 256];

/// A number that any change of the trace changes (FNV-1a).
fn digest(trace: &Trace) -> u64 {
    let words = trace.events.iter().flat_map(|(time, event)| {
        let [a, b, c, d] = match *event {
            Event::Start(vm) => [0, vm as u64, trace.vms[vm].pages, trace.vms[vm].vcpus.into()],
            Event::Stop(vm) => [1, vm as u64, 0, 0],
            Event::Run(vm, vcpu, cpu) => [2, vm as u64, vcpu.into(), cpu.into()],
            Event::Give(vm, first, count) => [3, vm as u64, first, count],
            Event::Take(vm, first, count) => [4, vm as u64, first, count],
        };
        [*time, a, b, c, d]
    });
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_traces_are_those_that_were_chosen_before_any_policy_was_measured() {
    let digests = Kind::ALL.map(|kind| digest(&Trace::new(kind, 128)));
    assert_eq!(digests, [12835672403821727474, 13838283662387792086, 15488631776639632416]);
}

#[test]
fn only_what_runs_runs_and_only_what_is_there_is_given() {
    for (kind, cpus) in Kind::ALL.into_iter().flat_map(|kind| CPUS.map(|cpus| (kind, cpus))) {
        let trace = Trace::new(kind, cpus);
        let (mut alive, mut gone, mut before) = (BTreeSet::new(), BTreeSet::new(), 0);
        for (time, event) in &trace.events {
            assert!(*time >= before);
            before = *time;
            match *event {
                Event::Start(vm) => assert!(alive.insert(vm)),
                Event::Stop(vm) => assert!(alive.remove(&vm)),
                Event::Run(vm, vcpu, cpu) => {
                    assert!(alive.contains(&vm) && vcpu < trace.vms[vm].vcpus && cpu < cpus);
                }
                Event::Give(vm, first, count) => {
                    assert!(alive.contains(&vm) && (first + count) * CHUNK <= trace.vms[vm].pages);
                    assert!((first..first + count).all(|chunk| gone.insert((vm, chunk))), "given twice");
                }
                Event::Take(vm, first, count) => {
                    assert!(alive.contains(&vm));
                    assert!((first..first + count).all(|chunk| gone.remove(&(vm, chunk))), "taken and never given");
                }
            }
            assert!(alive.len() <= 48, "more VMs than the kernel's table has");
        }
    }
}
