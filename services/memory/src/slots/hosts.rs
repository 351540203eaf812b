//! Slots in the order of their host addresses, for notifications.
//!
//! Slots may show the same memory, so their ranges overlap: sorted by their beginnings, they have no order of their
//! ends. `reach` is the highest end up to each place; it only grows, so what can overlap a range is found by two searches.
//! One long slot before many short ones makes more candidates than there are overlaps, in its own region only: a
//! region's VM makes the region's slots, so it slows down nobody's events but its own.

use core::ops::Range;

use heapless::Vec;

use crate::keyed::cut;

/// Ranges of host addresses, as words of [`HostAddress`](caisson_proto::addr::HostAddress).
#[derive(Debug)]
pub struct Hosts<const N: usize> {
    starts: Vec<u64, N>,
    ends: Vec<u64, N>,
    reach: Vec<u64, N>,
    places: Vec<u16, N>,
}

impl<const N: usize> Hosts<N> {
    /// Without ranges.
    pub const fn new() -> Self {
        Self { starts: Vec::new(), ends: Vec::new(), reach: Vec::new(), places: Vec::new() }
    }

    /// Adds a range. False, and nothing is changed, if there is no room.
    #[must_use]
    pub fn insert(&mut self, range: Range<u64>, place: u16) -> bool {
        let at = self.starts.partition_point(|start| *start <= range.start);
        // All four are as long as each other, so there is room in all or in none.
        let fits = self.starts.insert(at, range.start).is_ok()
            && self.ends.insert(at, range.end).is_ok()
            && self.reach.insert(at, range.end).is_ok()
            && self.places.insert(at, place).is_ok();
        if fits {
            self.spread(at);
        }
        fits
    }

    /// Takes a range away that was added with this place.
    pub fn remove(&mut self, start: u64, place: u16) {
        let from = self.starts.partition_point(|of| *of < start);
        let same = self.starts.iter().zip(self.places.iter()).skip(from).take_while(|(of, _)| **of == start);
        let Some(after) = same.into_iter().position(|(_, of)| *of == place) else { return };
        let at = from + after;
        self.starts.remove(at);
        self.ends.remove(at);
        self.reach.remove(at);
        self.places.remove(at);
        self.spread(at);
    }

    /// Takes all ranges away that begin in these host addresses.
    pub fn remove_range(&mut self, starts: Range<u64>) {
        let from = self.starts.partition_point(|of| *of < starts.start);
        let to = self.starts.partition_point(|of| *of < starts.end);
        cut(&mut self.starts, from..to);
        cut(&mut self.ends, from..to);
        cut(&mut self.reach, from..to);
        cut(&mut self.places, from..to);
        self.spread(from);
    }

    /// The places of what overlaps a range, by their beginnings.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = u16> + '_ {
        let to = self.starts.partition_point(|start| *start < range.end);
        let from = self.reach.get(..to).map_or(0, |reach| reach.partition_point(|end| *end <= range.start));
        let both = self.ends.iter().zip(self.places.iter()).take(to).skip(from);
        both.filter(move |(end, _)| **end > range.start).map(|(_, place)| *place)
    }

    /// Whether anything overlaps a range.
    #[inline]
    pub fn any(&self, range: Range<u64>) -> bool {
        self.any_within(range, 0, self.starts.len())
    }

    /// The same, where all before place `low` begin before the range's end and none from place `high` on does.
    #[inline]
    pub fn any_within(&self, range: Range<u64>, low: usize, high: usize) -> bool {
        // Of what begins before the range's end, one reaches into the range, or none does.
        let near = self.starts.get(low..high).unwrap_or_default();
        let to = low + near.partition_point(|start| *start < range.end);
        to.checked_sub(1).and_then(|last| self.reach.get(last)).is_some_and(|reach| *reach > range.start)
    }

    /// How many begin before this.
    pub fn before(&self, start: u64) -> usize {
        self.starts.partition_point(|of| *of < start)
    }

    /// Mends `reach` from a place on, as far as it isn't right.
    fn spread(&mut self, at: usize) {
        let mut reached = at.checked_sub(1).and_then(|before| self.reach.get(before)).copied().unwrap_or(0);
        let mut first = true;
        for (reach, end) in self.reach.iter_mut().zip(self.ends.iter()).skip(at) {
            reached = reached.max(*end);
            if *reach == reached && !first {
                return;
            }
            *reach = reached;
            first = false;
        }
    }
}

impl<const N: usize> Default for Hosts<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_range_is_found_behind_short_ones() {
        let mut hosts = Hosts::<8>::new();
        for (start, end, place) in [(0, 100, 0), (10, 11, 1), (20, 21, 2), (200, 201, 3)] {
            assert!(hosts.insert(start..end, place));
        }
        assert_eq!(hosts.overlapping(50..60).collect::<std::vec::Vec<_>>(), [0]);
        assert!(!hosts.any(100..200), "the ends are not in their ranges");
        hosts.remove(0, 0);
        assert!(!hosts.any(50..60));
        assert!(hosts.any(20..60));
    }

    #[test]
    fn a_full_one_takes_no_more() {
        let mut hosts = Hosts::<1>::new();
        assert!(hosts.insert(0..1, 0));
        assert!(!hosts.insert(5..6, 1));
        assert!(!hosts.any(5..6));
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_everything_finds(
            steps in prop::collection::vec((any::<bool>(), 0..60u64, 1..30u64), 0..60),
            queries in prop::collection::vec((0..100u64, 1..20u64), 20),
        ) {
            let mut hosts = Hosts::<24>::new();
            let mut all: std::vec::Vec<(u64, u64, u16)> = std::vec::Vec::new();
            for (number, (add, start, pages)) in steps.into_iter().enumerate() {
                if add {
                    if hosts.insert(start..start + pages, number as u16) {
                        all.push((start, start + pages, number as u16));
                    } else {
                        prop_assert_eq!(all.len(), 24);
                    }
                } else if pages < 4 {
                    hosts.remove_range(start..start + pages);
                    all.retain(|of| !(start..start + pages).contains(&of.0));
                } else if !all.is_empty() {
                    let (start, _, place) = all.swap_remove(start as usize % all.len());
                    hosts.remove(start, place);
                }
                for (start, pages) in &queries {
                    let mut found: std::vec::Vec<_> = hosts.overlapping(*start..start + pages).collect();
                    let mut right: std::vec::Vec<_> =
                        all.iter().filter(|of| of.0 < start + pages && of.1 > *start).map(|of| of.2).collect();
                    found.sort_unstable();
                    right.sort_unstable();
                    prop_assert_eq!(hosts.any(*start..start + pages), !right.is_empty());
                    prop_assert_eq!(found, right);
                }
            }
        }
    }
}
