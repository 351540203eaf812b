//! The one source of chance: a sequence that its seed determines (SplitMix64).

use std::cell::Cell;

/// The sequence.
#[derive(Debug)]
pub struct Rng(Cell<u64>);

impl Rng {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, or 0.
    pub fn below(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    /// True `times` times in `of`.
    pub fn chance(&self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }

    /// One of the items, if there is any.
    pub fn one_of<'a, T>(&self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len() as u64) as usize)
    }

    /// The same, itself.
    pub fn pick<T: Copy>(&self, items: &[T]) -> Option<T> {
        self.one_of(items).copied()
    }
}
