//! How many valid lines a CPU loses by WBINVD.
//!
//! A model of one number a CPU: a busy CPU fills its part of the caches at an even rate until it is full. Its part is what it has
//! alone, and its share of what it shares with its neighbours. WBINVD empties that part; WBNOINVD leaves it as it is.

use crate::trace::Time;

/// Lines of 64 bytes that are a CPU's: 1 MiB of L2 and a sixteenth of 32 MiB of L3.
pub const CAPACITY: u64 = (1 << 20 | 2 << 20) / 64;
/// Lines that it fills in a microsecond: 640 MB/s.
pub const RATE: u64 = 10;

/// When each CPU lost its lines last.
#[derive(Debug)]
pub struct Lines(Vec<Option<Time>>);

impl Lines {
    /// All are full.
    pub fn new(cpus: u16) -> Self {
        Self(vec![None; cpus.into()])
    }

    /// A CPU executes WBINVD. How many lines it loses.
    pub fn lose(&mut self, now: Time, cpu: u16) -> u64 {
        let last = self.0[usize::from(cpu)].replace(now);
        last.map_or(CAPACITY, |last| CAPACITY.min((now - last) * RATE))
    }
}
