//! What no correct policy can do without, with all of the future known to it. Two bounds; the higher one counts.
//!
//! The rule behind both: memory that left a VM goes to another one only if each CPU that ran the VM flushed between the
//! last moment at which it did so and the hand-over. And an ASID goes to another VM only if every CPU flushed in
//! between. Nothing else is required: no time passes for anything, frames lie where they are wanted, a VM takes its own
//! frames back unflushed, and any flush counts for everything.
//!
//! *One CPU at a time*: what left VMs and this CPU didn't flush since is nobody's; so it and what VMs have fit into the
//! machine together. A CPU that flushes as late as it can, whenever this would fail, flushes least often: at each
//! moment, who flushed later has less that it didn't flush. The bound is the sum of what each CPU needs.
//!
//! *Groups (`bound::groups`)* of CPUs, for the same reason: what one of them didn't flush is nobody's either. Only
//! where no VM takes memory again that it gave back.

mod front;
mod groups;

use std::collections::BTreeMap;

use crate::trace::{ASIDS, CHUNK, Event, Trace};

/// Memory that leaves a VM.
#[derive(Debug)]
struct Release {
    vm: usize,
    pages: u64,
    /// The VM is gone.
    gone: bool,
    /// At which event each CPU ran the VM last.
    last: Vec<Option<usize>>,
}

/// Who ran what when.
struct Runs {
    /// By VM: where each vCPU is.
    at: Vec<Vec<Option<u16>>>,
    /// By VM and CPU: when a vCPU left it last.
    left: Vec<Vec<Option<usize>>>,
}

impl Runs {
    fn new(trace: &Trace) -> Self {
        Self {
            at: trace.vms.iter().map(|vm| vec![None; vm.vcpus.into()]).collect(),
            left: vec![vec![None; trace.cpus.into()]; trace.vms.len()],
        }
    }

    fn run(&mut self, now: usize, vm: usize, vcpu: u8, cpu: u16) {
        if let Some(before) = self.at[vm][usize::from(vcpu)].replace(cpu) {
            self.left[vm][usize::from(before)] = Some(now);
        }
    }

    fn last(&self, now: usize, vm: usize) -> Vec<Option<usize>> {
        let mut last = self.left[vm].clone();
        self.at[vm].iter().flatten().for_each(|cpu| last[usize::from(*cpu)] = Some(now));
        last
    }
}

fn releases(trace: &Trace) -> Vec<Release> {
    let (mut runs, mut releases) = (Runs::new(trace), Vec::new());
    for (at, (_, event)) in trace.events.iter().enumerate() {
        let (vm, chunks) = match *event {
            Event::Run(vm, vcpu, cpu) => {
                runs.run(at, vm, vcpu, cpu);
                continue;
            }
            Event::Stop(vm) => (vm, None),
            Event::Give(vm, _, count) => (vm, Some(count)),
            Event::Start(_) | Event::Take(..) => continue,
        };
        let pages = chunks.map_or(trace.vms[vm].pages, |count| count * CHUNK);
        releases.push(Release { vm, pages, gone: chunks.is_none(), last: runs.last(at, vm) });
    }
    releases
}

/// Flushes that any correct policy executes on a machine with so many frames, at the least.
pub fn bound(trace: &Trace, frames: u64, group: usize) -> u64 {
    let releases = releases(trace);
    let alone = (0..usize::from(trace.cpus)).map(|cpu| one_cpu(trace, frames, &releases, cpu)).sum();
    if trace.events.iter().any(|(_, event)| matches!(event, Event::Take(..))) {
        return alone;
    }
    groups::bound(trace, frames, &releases, group).max(alone)
}

/// Flushes that one CPU can't do without.
fn one_cpu(trace: &Trace, frames: u64, releases: &[Release], cpu: usize) -> u64 {
    let mut releases = releases.iter();
    let (mut flushes, mut since) = (0, 0);
    // What VMs have, what left each and wasn't flushed, and the sum of that.
    let (mut has, mut left, mut waits) = (0, BTreeMap::new(), 0);
    let (mut alive, mut gone) = (0, 0);
    for (at, (_, event)) in trace.events.iter().enumerate() {
        let (vm, pages) = match *event {
            Event::Run(..) => continue,
            Event::Start(vm) => (vm, trace.vms[vm].pages),
            Event::Take(vm, _, count) => (vm, count * CHUNK),
            Event::Stop(_) | Event::Give(..) => {
                let Some(release) = releases.next() else { break };
                has -= release.pages;
                if release.last[cpu].is_some_and(|last| last >= since) {
                    *left.entry(release.vm).or_insert(0) += release.pages;
                    waits += release.pages;
                }
                if release.gone {
                    (alive, gone) = (alive - 1, gone + 1);
                }
                continue;
            }
        };
        if let Some(own) = left.get_mut(&vm) {
            let again = pages.min(*own);
            *own -= again;
            waits -= again;
        }
        has += pages;
        let begins = matches!(event, Event::Start(_));
        alive += usize::from(begins);
        if has + waits > frames || begins && alive + gone > ASIDS {
            flushes += 1;
            (since, waits, gone) = (at, 0, 0);
            left.clear();
        }
    }
    flushes
}
