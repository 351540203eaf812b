//! A set of guest pages: a bit for each.

use alloc::vec;
use alloc::vec::Vec;

const BITS: u64 = u64::BITS as u64;

/// Some of the pages below a limit.
#[derive(Debug)]
pub struct Pages(Vec<u64>);

impl Pages {
    /// None of the pages below `limit`.
    pub fn new(limit: u64) -> Self {
        Self(vec![0; limit.div_ceil(BITS) as usize])
    }

    /// Whether it has this one.
    #[inline]
    pub fn has(&self, page: u64) -> bool {
        self.0.get((page / BITS) as usize).is_some_and(|word| word >> (page % BITS) & 1 == 1)
    }

    /// Whether it has any of these.
    pub fn any(&self, first: u64, count: u64) -> bool {
        words(first, count).any(|(at, mask)| self.0.get(at).is_some_and(|word| word & mask != 0))
    }

    /// How many of these it has.
    pub fn count(&self, first: u64, count: u64) -> u64 {
        let ones = |(at, mask): (usize, u64)| self.0.get(at).map_or(0, |word| u64::from((word & mask).count_ones()));
        words(first, count).map(ones).sum()
    }

    /// How many are in both.
    pub fn common(&self, other: &Self) -> u64 {
        self.0.iter().zip(&other.0).map(|(one, other)| u64::from((one & other).count_ones())).sum()
    }

    /// Puts them in, or takes them out. What lies past the limit is left out.
    pub fn set(&mut self, first: u64, count: u64, to: bool) {
        for (at, mask) in words(first, count) {
            if let Some(word) = self.0.get_mut(at) {
                *word = if to { *word | mask } else { *word & !mask };
            }
        }
    }
}

/// The words in which these pages are, and which of their bits they are.
fn words(first: u64, count: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = first.saturating_add(count);
    (first / BITS..end.div_ceil(BITS)).map(move |at| {
        let (low, high) = (first.saturating_sub(at * BITS), (end - at * BITS).min(BITS));
        // Bits from `low` to before `high`.
        let below = |bit: u64| u64::MAX.checked_shl(bit as u32).unwrap_or(0);
        (at as usize, below(low) & !below(high))
    })
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 300;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0..LIMIT + 20, 0..200u64, any::<bool>()), 1..40)) {
            let mut pages = Pages::new(LIMIT);
            let mut model = BTreeSet::new();
            for (first, count, to) in steps {
                let range = first..first + count;
                prop_assert_eq!(pages.any(first, count), model.range(range.clone()).next().is_some());
                prop_assert_eq!(pages.count(first, count), model.range(range.clone()).count() as u64);
                pages.set(first, count, to);
                // The last word may hold a few more than asked for.
                for page in range.filter(|page| *page < LIMIT.div_ceil(BITS) * BITS) {
                    if to { model.insert(page); } else { model.remove(&page); }
                }
                prop_assert!((0..LIMIT + 64).all(|page| pages.has(page) == model.contains(&page)));
            }
        }
    }
}
