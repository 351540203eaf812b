//! What Linux does, as far as flushes go. Models of its behaviour; none of its code.
//!
//! - Memory of a SEV guest that is reclaimed is flushed at once, the whole cache of each CPU in question: all of them
//!   in 6.12, those that ever entered the guest in 6.17. One event of any size is one flush.
//! - A VM that ends loses its memory by the notification that the address space goes. 6.12 flushes once more when the VM itself
//!   goes; the series of 2025 dropped that before it changed the instruction.
//! - A balloon of SEV guests isn't offered by today's user side, as their memory is pinned. It is counted as the one notification
//!   that giving the pages up would be, without the flush for unregistering them.
//! - ASIDs are recycled when there is none left, with WBINVD on all CPUs: every ASID that was given up is free then.

use std::collections::BTreeSet;

use crate::policy::{Cost, Meter, Policy};
use crate::trace::{ASIDS, Event, Trace};

/// What one of Linux's policies costs on a trace. How much memory is free doesn't matter to it.
pub fn cost(trace: &Trace, policy: Policy) -> Cost {
    let mut meter = Meter::new(trace.cpus);
    let mut ran = vec![BTreeSet::new(); trace.vms.len()];
    let (mut free, mut reclaimable) = (ASIDS, 0);
    for &(now, event) in &trace.events {
        let mut flush = |vm: usize, wbinvd: bool, times: u32| {
            let all = policy != Policy::EverRan;
            for cpu in (0..trace.cpus).filter(|cpu| all || ran[vm].contains(cpu)) {
                (0..times).for_each(|_| meter.execute(now, cpu, wbinvd));
            }
        };
        match event {
            Event::Start(_) => {
                if free == 0 {
                    (0..trace.cpus).for_each(|cpu| meter.execute(now, cpu, true));
                    (free, reclaimable) = (reclaimable, 0);
                }
                free -= 1;
            }
            Event::Run(vm, _, cpu) => {
                ran[vm].insert(cpu);
            }
            Event::Stop(vm) => {
                let wbinvd = policy == Policy::AllWbinvd;
                flush(vm, wbinvd, 1 + u32::from(wbinvd));
                reclaimable += 1;
            }
            Event::Give(vm, ..) => flush(vm, policy == Policy::AllWbinvd, 1),
            Event::Take(..) => {}
        }
    }
    meter.cost()
}
