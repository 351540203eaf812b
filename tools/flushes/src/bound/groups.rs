//! The bound by groups of CPUs.
//!
//! What left VMs is nobody's as long as one CPU of a group owes a flush for it; so all that a group owes and what VMs have fit into
//! the machine together. How few flushes of its CPUs make that true is found exactly, by trying every choice: when it would fail,
//! some of them flush, as few as help. To flush before that, or more of them, is never better than to do it the next time: who
//! flushed later owes less. Of two ways to come to a moment, one makes the other needless if it costs no more even when those CPUs flush
//! now that flushed later in the other.
//!
//! Groups that have no CPU in common share no flush, so their bounds add up. CPUs that run different VMs say most together: so a
//! group is of CPUs that aren't neighbours.

use super::Release;
use crate::trace::{ASIDS, Event, NEIGHBOURS, Trace};

/// CPUs of a group.
const SIZE: usize = 4;
/// Ways that are followed at the most. If there are more, some are replaced by one that is better than all of them: the bound
/// gets lower and stays one.
const WAYS: usize = 300;

/// CPUs of a group, a bit each.
type Mask = usize;

/// A way to come to a moment: flushes so far, and at which event each CPU flushed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    flushes: u64,
    since: [usize; SIZE],
}

impl Way {
    /// Whether it could be as good as another one by flushing now what that one flushed later, and at no higher price.
    fn beats(&self, other: &Self) -> bool {
        let later = self.since.iter().zip(other.since).filter(|(own, other)| *own < other).count();
        self.flushes + later as u64 <= other.flushes
    }

    fn owes(&self, cpu: usize, last: Option<usize>) -> bool {
        last.is_some_and(|last| last >= self.since[cpu])
    }
}

/// Flushes that can't be done without, in a trace in which nobody takes memory again that it gave back.
pub fn bound(trace: &Trace, frames: u64, releases: &[Release]) -> u64 {
    let mut cpus: Vec<_> = (0..usize::from(trace.cpus)).collect();
    cpus.sort_by_key(|cpu| cpu % NEIGHBOURS as usize);
    cpus.chunks(SIZE).map(|group| Group::new(group).bound(trace, frames, releases)).sum()
}

struct Group<'a> {
    cpus: &'a [usize],
    ways: Vec<Way>,
    /// What one of them may owe something for.
    owed: Vec<&'a Release>,
    /// At which events VMs ended.
    gone: Vec<usize>,
}

impl<'a> Group<'a> {
    fn new(cpus: &'a [usize]) -> Self {
        Self { cpus, ways: vec![Way { flushes: 0, since: [0; SIZE] }], owed: Vec::new(), gone: Vec::new() }
    }

    fn bound(mut self, trace: &Trace, frames: u64, releases: &'a [Release]) -> u64 {
        let (mut has, mut alive, mut next) = (0, 0, releases.iter());
        for (at, (_, event)) in trace.events.iter().enumerate() {
            match *event {
                Event::Start(vm) => {
                    has += trace.vms[vm].pages;
                    alive += 1;
                    self.begins(at, frames.saturating_sub(has), ASIDS.saturating_sub(alive));
                }
                Event::Stop(_) | Event::Give(..) => {
                    let Some(release) = next.next() else { break };
                    has -= release.pages;
                    if release.gone {
                        alive -= 1;
                        self.gone.push(at);
                    }
                    self.owed.push(release);
                }
                Event::Run(..) | Event::Take(..) => {}
            }
        }
        self.ways.iter().map(|way| way.flushes).min().unwrap_or(0)
    }

    /// Something begins, after which so much may be owed for, and so many ASIDs.
    fn begins(&mut self, at: usize, pages: u64, asids: usize) {
        let mut ways = Vec::with_capacity(self.ways.len());
        for way in &self.ways {
            let must = (0..self.cpus.len()).filter(|cpu| self.gone(way.since[*cpu]) > asids);
            let must = must.fold(0, |mask: Mask, cpu| mask | 1 << cpu);
            self.ways_on(way, at, pages, must, &mut ways);
        }
        if ways != self.ways {
            self.ways = prune(ways);
        }
        let ways = &self.ways;
        let cpus = self.cpus;
        self.owed.retain(|release| {
            let owes = |way: &Way| (0..cpus.len()).any(|cpu| way.owes(cpu, release.last[cpus[cpu]]));
            ways.iter().any(owes)
        });
    }

    /// VMs that ended since.
    fn gone(&self, since: usize) -> usize {
        self.gone.len() - self.gone.partition_point(|at| *at < since)
    }

    /// What follows a way: every smallest choice of CPUs that flush, among them those that must.
    fn ways_on(&self, way: &Way, at: usize, pages: u64, must: Mask, ways: &mut Vec<Way>) {
        let mut owed = [0; 1 << SIZE];
        for release in &self.owed {
            let cpus = (0..self.cpus.len()).filter(|cpu| way.owes(*cpu, release.last[self.cpus[*cpu]]));
            owed[cpus.fold(0, |mask: Mask, cpu| mask | 1 << cpu)] += release.pages;
        }
        // What is owed for by these CPUs and no others: paid if they flush.
        let total: u64 = owed.iter().sum();
        for cpu in 0..SIZE {
            for mask in (0..1 << SIZE).filter(|mask| mask >> cpu & 1 == 1) {
                owed[mask] += owed[mask & !(1 << cpu)];
            }
        }
        let helps = |flush: Mask| flush & must == must && total - owed[flush] <= pages;
        let bits = |mask: Mask| (0..SIZE).map(|cpu| 1 << cpu).filter(move |bit: &Mask| mask & bit != 0);
        if helps(0) {
            return ways.push(*way);
        }
        for flush in (1..1 << self.cpus.len()).filter(|flush| helps(*flush)) {
            if bits(flush).any(|bit| helps(flush & !bit)) {
                continue;
            }
            let mut next = Way { flushes: way.flushes + u64::from(flush.count_ones()), ..*way };
            (0..SIZE).filter(|cpu| flush >> cpu & 1 == 1).for_each(|cpu| next.since[cpu] = at);
            ways.push(next);
        }
    }
}

/// Without those that another one beats.
fn prune(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_by_key(|way| (way.flushes, std::cmp::Reverse(way.since.iter().sum::<usize>())));
    let mut kept: Vec<Way> = Vec::new();
    for way in ways {
        if !kept.iter().any(|better| better.beats(&way)) {
            kept.push(way);
        }
    }
    if kept.len() > WAYS {
        let rest = kept.split_off(WAYS - 1);
        let since = |cpu: usize| rest.iter().map(|way| way.since[cpu]).max().unwrap_or(0);
        let flushes = rest.iter().map(|way| way.flushes).min().unwrap_or(0);
        kept.push(Way { flushes, since: std::array::from_fn(since) });
    }
    kept
}
