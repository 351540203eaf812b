//! The bound by groups of CPUs.
//!
//! What left VMs is nobody's as long as one CPU of a group owes a flush for it; so all that a group owes and what VMs
//! have fit into the machine together. How few flushes of its CPUs make that true is found exactly, but for ASIDs
//! (`Group::round`), by trying every choice: when it would fail, some of them flush, as few as help. To flush before
//! that, or more of them, is never better than to do it the next time: who flushed later owes less. Of two ways to come
//! to a moment, one makes the other needless if it costs no more even when those CPUs flush now that flushed later in
//! the other (`bound::front`).
//!
//! Groups that have no CPU in common share no flush, so their bounds add up. CPUs that run different VMs say most together: so a
//! group is of CPUs that aren't neighbours.

use rayon::prelude::*;

use super::Release;
pub use super::front::SIZE;
use super::front::{Way, blur, prune};
use crate::trace::{ASIDS, Event, NEIGHBOURS, Trace};

/// Ways that are followed at the most. If there are more, some are replaced by one that is at least as good as each of them: the
/// bound gets lower and stays one.
const WAYS: usize = 300_000;
/// Choices of CPUs that flush.
const CHOICES: usize = 1 << SIZE;

/// Memory that left a VM.
#[derive(Clone, Copy)]
struct Left {
    pages: u32,
    /// For each CPU, one more than how often something had begun when it ran the VM last; 0: it never did. So it owes
    /// if it flushed at an earlier beginning than this.
    until: [u16; SIZE],
}

impl Left {
    /// Which CPUs owe for it, a bit each.
    fn owed(&self, way: &Way) -> usize {
        let owes = self.until.iter().zip(way.since).map(|(until, since)| usize::from(*until > since));
        owes.enumerate().fold(0, |mask, (cpu, owes)| mask | owes << cpu)
    }
}

/// Flushes that can't be done without, in a trace in which nobody takes memory again that it gave back.
pub fn bound(trace: &Trace, frames: u64, releases: &[Release], size: usize) -> u64 {
    let mut cpus: Vec<_> = (0..usize::from(trace.cpus)).collect();
    cpus.sort_by_key(|cpu| cpu % NEIGHBOURS as usize);
    let begins: Vec<_> = (trace.events.iter().enumerate())
        .filter(|(_, (_, event))| matches!(event, Event::Start(_)))
        .map(|(at, _)| at)
        .collect();
    let until = |last: Option<usize>| last.map_or(0, |last| begins.partition_point(|begin| *begin <= last) as u16 + 1);
    let of_group = |group: &[usize]| {
        let left = |release: &Release| Left {
            pages: release.pages as u32,
            until: std::array::from_fn(|cpu| group.get(cpu).map_or(0, |cpu| until(release.last[*cpu]))),
        };
        Group { size: group.len(), left: releases.iter().map(left).collect() }.bound(trace, frames, releases)
    };
    cpus.par_chunks(size).map(of_group).sum()
}

struct Group {
    size: usize,
    /// All that ever leaves a VM.
    left: Vec<Left>,
}

/// Where a group is in the trace.
struct Moment<'a> {
    /// So many things began.
    begun: u16,
    /// Of what left VMs, what somebody may owe something for.
    owed: Vec<Left>,
    /// What will leave them.
    future: &'a [Left],
    /// How many things had begun when each VM ended that did.
    gone: Vec<u16>,
    /// So many pages may be owed for.
    pages: u32,
    /// So many ASIDs may wait for a flush.
    asids: usize,
}

impl Group {
    fn bound(&self, trace: &Trace, frames: u64, releases: &[Release]) -> u64 {
        let mut ways = vec![Way::default()];
        let (mut has, mut alive, mut releases) = (0, 0, releases.iter());
        let mut now = Moment { begun: 0, owed: Vec::new(), future: &self.left, gone: Vec::new(), pages: 0, asids: 0 };
        for (_, event) in &trace.events {
            match *event {
                Event::Start(vm) => {
                    has += trace.vms[vm].pages;
                    alive += 1;
                    now.begun += 1;
                    now.pages = frames.saturating_sub(has) as u32;
                    now.asids = ASIDS.saturating_sub(alive);
                    ways = self.begins(ways, &mut now);
                }
                Event::Stop(_) | Event::Give(..) => {
                    let (Some(release), Some((left, future))) = (releases.next(), now.future.split_first()) else {
                        break;
                    };
                    has -= release.pages;
                    if release.gone {
                        alive -= 1;
                        now.gone.push(now.begun);
                    }
                    now.owed.push(*left);
                    now.future = future;
                }
                Event::Run(..) | Event::Take(..) => {}
            }
        }
        ways.iter().map(|way| u64::from(way.flushes)).min().unwrap_or(0)
    }

    /// Something begins: the ways on from here.
    fn begins(&self, before: Vec<Way>, now: &mut Moment) -> Vec<Way> {
        let mut ways = Vec::with_capacity(before.len());
        before.iter().for_each(|way| self.ways_on(way, now, &mut ways));
        if ways != before {
            self.round(&mut ways, now);
            ways = blur(prune(ways), WAYS);
        }
        let mut earliest = [u16::MAX; SIZE];
        for way in &ways {
            earliest.iter_mut().zip(way.since).for_each(|(earliest, since)| *earliest = since.min(*earliest));
        }
        now.owed.retain(|left| left.until.iter().zip(earliest).any(|(until, earliest)| *until > earliest));
        ways
    }

    /// What follows a way: every smallest choice of CPUs that flush, among them those that must.
    fn ways_on(&self, way: &Way, now: &Moment, ways: &mut Vec<Way>) {
        let ended_since = |since: u16| now.gone.len() - now.gone.partition_point(|gone| *gone < since);
        let must = (0..self.size).filter(|cpu| ended_since(way.since[*cpu]) > now.asids);
        let must = must.fold(0, |mask: usize, cpu| mask | 1 << cpu);
        let (mut owed, mut total) = ([0u32; CHOICES], 0);
        for left in &now.owed {
            let cpus = left.owed(way);
            owed[cpus] += left.pages;
            total += if cpus == 0 { 0 } else { left.pages };
        }
        if must == 0 && total <= now.pages {
            return ways.push(*way);
        }
        owed[0] = 0;
        // What is owed for by these CPUs and no others: paid if they flush.
        let choices = 1 << self.size;
        for cpu in 0..self.size {
            for mask in (0..choices).filter(|mask| mask >> cpu & 1 == 1) {
                owed[mask] += owed[mask & !(1 << cpu)];
            }
        }
        let helps = |flush: usize| flush & must == must && total - owed[flush] <= now.pages;
        for flush in (1..choices).filter(|flush| helps(*flush)) {
            let flushes = |cpu: &usize| flush >> cpu & 1 == 1;
            if (0..self.size).filter(flushes).any(|cpu| helps(flush & !(1 << cpu))) {
                continue;
            }
            let mut next = Way { flushes: way.flushes + flush.count_ones(), ..*way };
            (0..self.size).filter(flushes).for_each(|cpu| next.since[cpu] = now.begun);
            ways.push(next);
        }
    }

    /// Moments of flushes between which nothing lies that a CPU owes, or will, are taken for the last of them. For
    /// ASIDs that is a little too late, which makes the bound lower.
    fn round(&self, ways: &mut [Way], now: &Moment) {
        for cpu in 0..self.size {
            let mut until: Vec<_> = now.owed.iter().chain(now.future).map(|left| left.until[cpu]).collect();
            until.sort_unstable();
            until.dedup();
            let latest = |since: u16| {
                let next = until.get(until.partition_point(|until| *until <= since));
                next.map_or(now.begun, |until| (until - 1).min(now.begun))
            };
            let latest: Vec<_> = (0..=now.begun).map(latest).collect();
            ways.iter_mut().for_each(|way| way.since[cpu] = latest[usize::from(way.since[cpu])]);
        }
    }
}
