//! The bound by windows.
//!
//! In a window of the trace, VMs begin. Their memory was nobody's when the window began, or left a VM in it. If what was
//! nobody's doesn't suffice, some of the latter was handed over; and for that, the CPUs that ran those VMs in the window flushed in
//! the window. Whichever releases were used, at least so many were as the largest that suffice; so the smallest union of the
//! CPUs of so many is a bound. Windows that don't overlap don't share flushes: the best way to cut the trace gives the bound.

use super::Release;
use crate::trace::{Event, Trace};

/// CPUs, a bit each.
type Set = [u64; 8];

/// Releases that are looked at together at the most: with fewer, the bound is lower and faster.
const TOGETHER: usize = 4;
/// How many may be in a window if they are looked at in fours, threes or pairs.
const FEW: [usize; 3] = [36, 64, 160];

fn size(set: &Set) -> u64 {
    set.iter().map(|word| u64::from(word.count_ones())).sum()
}

fn union(a: &Set, b: &Set) -> Set {
    std::array::from_fn(|word| a[word] | b[word])
}

/// Flushes that can't be done without.
pub fn bound(trace: &Trace, frames: u64, releases: &[Release]) -> u64 {
    // Moments after something began: the event, and what VMs have then.
    let mut starts = vec![(0, 0)];
    let (mut has, mut next) = (0, releases.iter().peekable());
    for (at, (_, event)) in trace.events.iter().enumerate() {
        while let Some(release) = next.next_if(|release| release.at == at) {
            has -= release.pages;
        }
        match *event {
            Event::Start(vm) => {
                has += trace.vms[vm].pages;
                starts.push((at, has));
            }
            Event::Take(_, _, count) => has += count * crate::trace::CHUNK,
            _ => {}
        }
    }
    let mut best = vec![0; starts.len()];
    for (from, &(begin, has)) in starts.iter().enumerate() {
        if from > 0 {
            best[from] = best[from].max(best[from - 1]);
        }
        let mut window = Window { begin, free: frames.saturating_sub(has), wanted: 0, releases: Vec::new() };
        let mut rest = releases.iter().skip_while(|release| release.at <= begin).peekable();
        for (to, &(end, _)) in starts.iter().enumerate().skip(from + 1) {
            while let Some(release) = rest.next_if(|release| release.at < end) {
                window.take_in(release);
            }
            if let (_, Event::Start(vm)) = trace.events[end] {
                window.wanted += trace.vms[vm].pages;
            }
            // Longer ones say no more than two of half the length.
            if window.wanted > window.free * 2 && window.releases.len() > FEW[0] || window.releases.len() > FEW[2] {
                break;
            }
            best[to] = best[to].max(best[from] + window.flushes());
        }
    }
    best.last().copied().unwrap_or(0)
}

struct Window {
    begin: usize,
    /// What was nobody's at its beginning.
    free: u64,
    /// What began since.
    wanted: u64,
    /// What left VMs since: pages, and the CPUs that ran them since.
    releases: Vec<(u64, Set)>,
}

impl Window {
    fn take_in(&mut self, release: &Release) {
        let mut set = [0; 8];
        for (cpu, last) in release.last.iter().enumerate() {
            if last.is_some_and(|last| last > self.begin) {
                set[cpu / 64] |= 1 << (cpu % 64);
            }
        }
        self.releases.push((release.pages, set));
    }

    /// CPUs that must flush in it.
    fn flushes(&self) -> u64 {
        let lacks = self.wanted.saturating_sub(self.free);
        if lacks == 0 {
            return 0;
        }
        let mut pages: Vec<_> = self.releases.iter().map(|(pages, _)| *pages).collect();
        pages.sort_unstable_by(|a, b| b.cmp(a));
        let (mut count, mut sum) = (0, 0);
        while sum < lacks && count < pages.len() {
            sum += pages[count];
            count += 1;
        }
        let together = TOGETHER - FEW.iter().filter(|few| pages.len() > **few).count();
        let mut sets: Vec<_> = self.releases.iter().map(|(_, set)| *set).collect();
        sets.sort_unstable_by_key(size);
        smallest(&sets, count.min(together), &[0; 8], u64::MAX)
    }
}

/// The size of the smallest union with so many of these sets, the smaller first, if it is below `best`; else `best`.
fn smallest(sets: &[Set], count: usize, with: &Set, mut best: u64) -> u64 {
    if count == 0 {
        return best.min(size(with));
    }
    for (at, set) in sets.iter().enumerate() {
        if sets.len() - at < count || size(set) >= best {
            break;
        }
        let union = union(with, set);
        if size(&union) < best {
            best = smallest(&sets[at + 1..], count - 1, &union, best);
        }
    }
    best
}
