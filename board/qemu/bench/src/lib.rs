//! What the two services that measure each other have in common. They are in no machine but the bench's
//! (`board/qemu/bench.toml`).
#![no_std]
#![forbid(unsafe_code)]

/// How often each way to talk is measured.
pub const TIMES: usize = 65;

/// What the caller asks the callee: word 0 of a call.
pub mod ask {
    /// Answer.
    pub const NOTHING: u64 = 0;
    /// Read everything that is in the ring; words 0 and 1 of the answer are the least and the median cost of a message.
    pub const READ_RING: u64 = 1;
    /// Be rung for the next message.
    pub const SLEEP: u64 = 2;
    /// Words 0 and 1 of the answer: least and median of the times from sending a message to its being read.
    pub const RUNG: u64 = 3;
    /// Fault.
    pub const FAULT: u64 = 4;
}

/// Durations, in ticks.
#[derive(Clone, Debug)]
pub struct Samples {
    all: [u64; TIMES],
    count: usize,
}

impl Samples {
    /// None yet.
    pub const fn new() -> Self {
        Self { all: [0; TIMES], count: 0 }
    }

    /// Takes one more, unless there are enough.
    pub fn add(&mut self, ticks: u64) {
        if let Some(place) = self.all.get_mut(self.count) {
            *place = ticks;
            self.count += 1;
        }
    }

    /// Whether there are enough.
    pub const fn full(&self) -> bool {
        self.count == TIMES
    }

    /// The least and the median; 0 without any.
    pub fn least_and_median(&mut self) -> (u64, u64) {
        let taken = self.all.get_mut(..self.count).unwrap_or_default();
        taken.sort_unstable();
        (taken.first().copied().unwrap_or(0), taken.get(taken.len() / 2).copied().unwrap_or(0))
    }
}

impl Default for Samples {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_and_median_are_of_what_was_taken() {
        let mut samples = Samples::new();
        assert_eq!(samples.least_and_median(), (0, 0));
        [9, 1, 5].into_iter().for_each(|ticks| samples.add(ticks));
        assert_eq!((samples.least_and_median(), samples.full()), ((1, 5), false));
        (0..100).for_each(|_| samples.add(7));
        assert!(samples.full());
        assert_eq!(samples.least_and_median(), (1, 7));
    }
}
