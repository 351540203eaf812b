//! Plays traces under all policies.

use rayon::prelude::*;

use crate::bound::bound;
use crate::policy::{Cost, Policy};
use crate::report::Row;
use crate::trace::{Kind, Trace};
use crate::{caisson, linux};

/// CPUs of the machines.
pub const CPUS: [u16; 5] = [16, 32, 64, 128, 256];
/// Percent of their memory that are free.
pub const FREE: [u64; 3] = [0, 10, 50];

/// A trace on a machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The trace.
    pub kind: Kind,
    /// CPUs.
    pub cpus: u16,
    /// Percent of its memory that are free when most is needed.
    pub free: u64,
}

/// What it costs there. The bound is that of groups of so many CPUs, 1 to 8.
///
/// # Errors
/// Why Caisson couldn't play the trace to its end.
pub fn row(Machine { kind, cpus, free }: Machine, group: usize) -> Result<Row, String> {
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
    Ok(Row { kind, cpus, free, costs, bound: bound(&trace, frames, group) })
}

/// All of these, in their order; `done` is called after each.
///
/// # Errors
/// As [`row`].
pub fn all(machines: &[Machine], group: usize, done: impl Fn() + Sync) -> Result<Vec<Row>, String> {
    machines.par_iter().map(|machine| row(*machine, group).inspect(|_| done())).collect()
}
