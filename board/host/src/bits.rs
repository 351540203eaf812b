//! Sets of small numbers: of CPUs, and of frames.

/// A set, a bit each.
#[derive(Clone, Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// None of numbers below `end`, which it has room for. Others make it grow.
    pub fn new(end: u64) -> Self {
        Self(vec![0; (end / 64 + 1) as usize])
    }

    /// Puts a number in.
    pub fn insert(&mut self, number: u64) {
        let at = (number / 64) as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (number % 64);
    }

    /// Takes one out.
    pub fn remove(&mut self, number: u64) {
        if let Some(word) = self.0.get_mut((number / 64) as usize) {
            *word &= !(1 << (number % 64));
        }
    }

    /// The lowest from a number on.
    pub fn next_from(&self, from: u64) -> Option<u64> {
        let first = (from / 64) as usize;
        let masked = self.0.get(first)? & u64::MAX << (from % 64);
        if masked != 0 {
            return Some(first as u64 * 64 + u64::from(masked.trailing_zeros()));
        }
        let (at, word) = self.0.iter().enumerate().skip(first + 1).find(|(_, word)| **word != 0)?;
        Some(at as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// All, from the lowest on.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let number = self.next_from(from)?;
            from = number + 1;
            Some(number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn is_a_set() {
        let (rng, mut bits, mut set) = (Rng::new(1), Bits::new(100), BTreeSet::new());
        for _ in 0..2000 {
            let number = rng.below(300);
            if rng.chance(1, 2) {
                bits.insert(number);
                set.insert(number);
            } else {
                bits.remove(number);
                set.remove(&number);
            }
            let from = rng.below(400);
            assert_eq!(bits.next_from(from), set.range(from..).next().copied());
        }
        assert!(bits.iter().eq(set));
    }
}
