//! Plays all traces under all policies.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::bound::bound;
use crate::policy::{Cost, Policy};
use crate::report::Row;
use crate::trace::{Kind, Trace};
use crate::{caisson, linux};

/// CPUs of the machines.
pub const CPUS: [u16; 5] = [16, 32, 64, 128, 256];
/// Percent of their memory that are free.
pub const FREE: [u64; 3] = [0, 10, 50];

/// One trace on one machine.
///
/// # Errors
/// Why Caisson couldn't play the trace to its end.
pub fn row(kind: Kind, cpus: u16, free: u64) -> Result<Row, String> {
    let trace = Trace::new(kind, cpus);
    let frames = trace.frames(free);
    let mut costs = [Cost::default(); Policy::ALL.len()];
    for (cost, policy) in costs.iter_mut().zip(Policy::ALL) {
        *cost = match policy {
            Policy::Caisson => caisson::cost(&trace, frames)
                .map_err(|what| format!("{}, {cpus} CPUs, {free} % free: {what}", kind.name()))?,
            linux => linux::cost(&trace, linux),
        };
    }
    Ok(Row { kind, cpus, free, costs, bound: bound(&trace, frames) })
}

/// All traces on machines with so many CPUs, in the order of [`Kind::ALL`].
///
/// # Errors
/// As [`row`].
pub fn all(cpus: &[u16]) -> Result<Vec<Row>, String> {
    let machines: Vec<_> = (Kind::ALL.into_iter())
        .flat_map(|kind| cpus.iter().flat_map(move |cpus| FREE.map(|free| (kind, *cpus, free))))
        .collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![None; machines.len()]));
    let work = || {
        while let Some(&(kind, cpus, free)) = machines.get(next.fetch_add(1, Ordering::Relaxed)) {
            let at = machines.iter().position(|machine| *machine == (kind, cpus, free));
            let row = row(kind, cpus, free);
            if let (Some(at), Ok(mut done)) = (at, done.lock()) {
                done[at] = Some(row);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let done = done.into_inner().map_err(|_| "a thread panicked")?;
    done.into_iter().map(|row| row.unwrap_or(Err("a thread ended early".into()))).collect()
}
