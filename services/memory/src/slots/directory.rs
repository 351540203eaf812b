//! Where a region has slots, roughly: what answers most spurious events.
//!
//! A region is cut into a bounded number of equal granules, a power of two pages each. A bit says that slots touch the
//! granule: where none is set, no slot is, and nothing else needs to be looked at. Where one is set, the exact index is asked,
//! and the directory says where to begin: how many slots of the region begin before each granule. So the search takes as
//! many steps as the granule has slots, whatever the region has.

use core::ops::Range;

/// Granules of any region at the most.
pub const GRANULES: usize = 16_384;

/// The directory of one region, with `G` granules at the most.
#[derive(Clone, Debug)]
pub struct Directory<const G: usize> {
    touched: [u64; GRANULES / 64],
    /// Of the region's slots, those that begin before the granule's end.
    begun: [u16; G],
    /// A granule is 2 to this power pages.
    shift: u32,
}

impl<const G: usize> Directory<G> {
    /// Of a region of so many pages, without slots.
    pub const fn new(pages: u64) -> Self {
        const { assert!(G > 0 && G <= GRANULES) };
        Self { touched: [0; GRANULES / 64], begun: [0; G], shift: Self::shift(pages) }
    }

    /// Becomes that of a region of so many pages, without slots.
    pub fn reset(&mut self, pages: u64) {
        self.touched.fill(0);
        self.begun.fill(0);
        self.shift = Self::shift(pages);
    }

    const fn shift(pages: u64) -> u32 {
        let granule = pages.div_ceil(G as u64);
        if granule <= 1 { 0 } else { 64 - (granule - 1).leading_zeros() }
    }

    /// Pages of a granule.
    pub const fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// The first and last granule of a range, not empty.
    fn granules(&self, pages: &Range<u64>) -> (usize, usize) {
        let of = |page: u64| usize::try_from(page >> self.shift).unwrap_or(usize::MAX).min(G - 1);
        (of(pages.start), of(pages.end.saturating_sub(1).max(pages.start)))
    }

    /// Whether slots may overlap a range. A range past the region's end is treated as its last granule is.
    #[inline]
    pub fn may_overlap(&self, pages: &Range<u64>) -> bool {
        let (first, last) = self.granules(pages);
        if first == last {
            return self.touched.get(first / 64).is_some_and(|bits| bits >> (first % 64) & 1 == 1);
        }
        words(first, last).any(|(word, mask)| self.touched.get(word).is_some_and(|bits| bits & mask != 0))
    }

    /// Of the region's slots by their beginnings, those among which the last one is that begins before the range's end: all
    /// before the first number begin before it, none from the second on.
    #[inline]
    pub fn around(&self, end: u64) -> (usize, usize) {
        let granule = usize::try_from(end.saturating_sub(1) >> self.shift).unwrap_or(usize::MAX).min(G - 1);
        let of = |granule: usize| self.begun.get(granule).map_or(0, |begun| usize::from(*begun));
        (granule.checked_sub(1).map_or(0, of), of(granule))
    }

    /// A slot came.
    pub fn add(&mut self, pages: &Range<u64>) {
        let (first, last) = self.granules(pages);
        for (word, mask) in words(first, last) {
            if let Some(bits) = self.touched.get_mut(word) {
                *bits |= mask;
            }
        }
        self.begun.iter_mut().skip(first).for_each(|begun| *begun = begun.saturating_add(1));
    }

    /// A slot went; `any` says whether others overlap a range.
    pub fn remove(&mut self, pages: &Range<u64>, mut any: impl FnMut(Range<u64>) -> bool) {
        let (first, last) = self.granules(pages);
        for granule in first..=last {
            let from = (granule as u64) << self.shift;
            if !any(from..from + self.granule())
                && let Some(bits) = self.touched.get_mut(granule / 64)
            {
                *bits &= !(1 << (granule % 64));
            }
        }
        self.begun.iter_mut().skip(first).for_each(|begun| *begun = begun.saturating_sub(1));
    }
}

/// The words of a bitmap that hold these bits, and which bits of them.
fn words(first: usize, last: usize) -> impl Iterator<Item = (usize, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let low = if word == first / 64 { first % 64 } else { 0 };
        let high = if word == last / 64 { last % 64 } else { 63 };
        (word, u64::MAX << low & u64::MAX >> (63 - high))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn granules_grow_with_the_region() {
        assert_eq!(Directory::<4096>::new(1).granule(), 1);
        assert_eq!(Directory::<4096>::new(4096).granule(), 1);
        assert_eq!(Directory::<4096>::new(4097).granule(), 2);
        assert_eq!(Directory::<4096>::new(1 << 28).granule(), 1 << 16);
    }

    #[test]
    fn one_that_is_used_again_knows_nothing_of_before() {
        let mut directory = Directory::<64>::new(6400);
        directory.add(&(100..300));
        directory.reset(64);
        assert_eq!((directory.granule(), directory.may_overlap(&(0..64)), directory.around(64)), (1, false, (0, 0)));
    }

    proptest! {
        #[test]
        fn it_never_overlooks_a_slot_and_forgets_those_that_went(
            slots in prop::collection::vec((0..20_000u64, 1..900u64), 1..12), queries in prop::collection::vec((0..21_000u64, 1..3000u64), 20),
        ) {
            let mut directory = Directory::<64>::new(20_900);
            let mut there: std::vec::Vec<_> = slots.iter().map(|(start, pages)| *start..start + pages).collect();
            there.iter().for_each(|slot| directory.add(slot));
            while let Some(gone) = there.pop() {
                let any = |range: Range<u64>| there.iter().any(|slot| slot.start < range.end && slot.end > range.start);
                directory.remove(&gone, any);
                for (start, pages) in &queries {
                    let granule = directory.granule();
                    let rounded = start / granule * granule..(start + pages).div_ceil(granule) * granule;
                    prop_assert_eq!(directory.may_overlap(&(*start..start + pages)), any(rounded));
                    let (low, high) = directory.around(start + pages);
                    let begun = there.iter().filter(|slot| slot.start < start + pages).count();
                    prop_assert!((low..=high).contains(&begun));
                }
            }
            prop_assert!(!directory.may_overlap(&(0..30_000)));
        }
    }
}
