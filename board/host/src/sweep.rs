//! Many seeds on several threads. What a seed gives doesn't depend on how many there are, nor does which failure is
//! told: the first.

use std::cell::Cell;
use std::ops::Range;
use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Config;
use crate::sim::{Failure, Report, replay, run};

/// Bytes of a thread's stack: the kernel's state is made on it.
const STACK: usize = 16 << 20;

thread_local! {
    /// What this thread runs, for the reader of a panic.
    static PRESENT: Cell<Option<(u64, Config)>> = const { Cell::new(None) };
}

/// Tells of a panic with the command that replays it.
pub fn tell_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| match PRESENT.get() {
        Some((seed, config)) => eprintln!("{info}\n{}", replay(seed, &config)),
        None => usual(info),
    }));
}

/// Runs seeds, on so many threads, and passes on what was reported, in no particular order. The failure of the lowest seed
/// that has one; those below it have been run then.
pub fn sweep(
    seeds: Range<u64>, jobs: usize, config: impl Fn(u64) -> Config + Sync, mut reported: impl FnMut(Report) + Send,
) -> Option<Failure> {
    let (next, end) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let (reported, first) = (Mutex::new(&mut reported), Mutex::new(None::<Failure>));
    let work = || {
        loop {
            // Seeds are begun in their order, so that all below one that fails are.
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return;
            }
            let config = config(seed);
            PRESENT.set(Some((seed, config)));
            match run(seed, &config) {
                Ok(report) => {
                    if let Ok(mut reported) = reported.lock() {
                        reported(report);
                    }
                }
                Err(failure) => {
                    end.fetch_min(seed, Ordering::Relaxed);
                    if let Ok(mut first) = first.lock()
                        && first.as_ref().is_none_or(|first| first.seed > seed)
                    {
                        *first = Some(failure);
                    }
                }
            }
            PRESENT.set(None);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let started = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            started.expect("a thread");
        }
    });
    first.into_inner().ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let small = |seed| Config { cpus: 2, vms: 2, events: 0, fewest: 0, actions: 10, ..Config::of_seed(seed) };
        let all = |jobs| {
            let mut reports = Vec::new();
            assert!(sweep(3..15, jobs, small, |report| reports.push(report)).is_none());
            reports.sort_by_key(|report| report.seed);
            reports
        };
        assert_eq!(all(1).len(), 12);
        assert_eq!(all(1), all(5));
    }

    #[test]
    fn the_first_failure_is_told() {
        // More events are wanted of some than there can be.
        let fails = |seed| seed == 9 || seed >= 11;
        let small = |seed| Config {
            cpus: 2,
            vms: 1,
            events: 0,
            fewest: if fails(seed) { u64::MAX } else { 0 },
            ..Config::of_seed(seed)
        };
        for jobs in [1, 2, 7] {
            assert_eq!(sweep(5..40, jobs, small, drop).map(|failure| failure.seed), Some(9));
        }
    }
}
