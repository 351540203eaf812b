//! What one event costs, and what it needs for that.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use serde::Serialize;

use crate::layout::{self, EVENTS, Kind, LENGTH, REGION};
use crate::locks;
use crate::ways::Ways;

/// Names of the ways, in their order.
pub const WAYS: [&str; 3] = ["Caisson", "Linux's way", "naive"];

/// One line: medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// What happened.
    pub event: &'static str,
    /// Slots.
    pub slots: u64,
    /// vCPUs.
    pub vcpus: usize,
    /// Nanoseconds an event, by way.
    pub ns: [f64; 3],
    /// Locks that an event took, by way.
    pub locks: [u64; 3],
    /// Allocations that all events of a turn made, by way.
    pub allocations: [u64; 3],
}

impl Cost {
    /// Linux's way in parts of Caisson's.
    pub fn ratio(&self) -> f64 {
        self.ns[1] / self.ns[0]
    }
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Serves these events; for a real one, the page is mapped before, which costs each way the same.
fn serve(ways: &mut Ways, way: usize, kind: Kind, ranges: &[Range<u64>]) {
    for range in ranges {
        let range = black_box(range);
        let real = kind == Kind::Real;
        match way {
            0 => {
                if real {
                    ways.caisson.kernel.vm.put(range.start);
                }
                while ways.caisson.event(range) {}
            }
            1 => {
                if real {
                    ways.linux.vm.put(range.start);
                }
                ways.linux.event(range);
            }
            _ => {
                if real {
                    ways.naive.vm.put(range.start);
                }
                ways.naive.event(range);
            }
        }
    }
}

/// Measures one line, the three ways taking turns in each round.
///
/// # Errors
/// What the table refused.
pub fn measure(kind: Kind, slots: u64, vcpus: usize, rounds: usize) -> Result<Cost, String> {
    let mut ways = Ways::new(slots, vcpus)?;
    let ranges = kind.ranges(slots);
    let (mut locks, mut allocations) = ([0; 3], [0; 3]);
    for way in 0..3 {
        let before = locks::taken();
        let counted = allocation_counter::measure(|| serve(&mut ways, way, kind, &ranges));
        locks[way] = (locks::taken() - before) / EVENTS as u64;
        allocations[way] = counted.count_total;
    }
    let mut all: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        for turn in 0..3 {
            // Nobody is always first.
            let way = (turn + round) % 3;
            let start = Instant::now();
            serve(&mut ways, way, kind, &ranges);
            all[way].push(start.elapsed().as_nanos() as f64 / EVENTS as f64);
        }
    }
    let ns = all.each_mut().map(|values| median(values));
    Ok(Cost { event: kind.name(), slots, vcpus, ns, locks, allocations })
}

/// TLB flushes for one event over so many slots, by way.
///
/// # Errors
/// What the table refused.
pub fn flushes(slots: u64) -> Result<[u64; 3], String> {
    let mut ways = Ways::new(slots, 8)?;
    // One page of each, so that a call of Caisson's is enough.
    let pages = (0..slots).map(|slot| layout::start(slot, slots) + LENGTH / 2);
    for page in pages {
        ways.caisson.kernel.vm.put(page);
        ways.linux.vm.put(page);
        ways.naive.vm.put(page);
    }
    let all = 0..REGION;
    while ways.caisson.event(&all) {}
    ways.linux.event(&all);
    ways.naive.event(&all);
    let count = |vm: &crate::vm::Vm| vm.flushes.load(std::sync::atomic::Ordering::Relaxed);
    Ok([count(&ways.caisson.kernel.vm), count(&ways.linux.vm), count(&ways.naive.vm)])
}
