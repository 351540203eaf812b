//! Slots in the order of their host addresses, for notifications.
//!
//! Slots may show the same memory, so their ranges overlap: sorted by their beginnings, they have no order of their
//! ends. `reach` is the highest end up to each place; it only grows, so what can overlap a range is found by two searches.
//! One long slot before many short ones makes more candidates than there are overlaps, in its own region only: a
//! region's VM makes the region's slots, so it slows down nobody's events but its own.

use core::ops::Range;

use heapless::Vec;

use crate::keyed::cut;

/// So many are looked at one by one, and not by halves.
const FEW: usize = 16;

/// Where a range begins, and the highest end of all ranges up to it: what a search reads, side by side.
#[derive(Clone, Copy, Debug)]
struct Mark {
    start: u64,
    reach: u64,
}

/// Ranges of host addresses, as words of [`HostAddress`](caisson_proto::slots::HostAddress).
#[derive(Debug)]
pub struct Hosts<const N: usize> {
    marks: Vec<Mark, N>,
    ends: Vec<u64, N>,
    places: Vec<u16, N>,
}

impl<const N: usize> Hosts<N> {
    /// Without ranges.
    pub const fn new() -> Self {
        Self { marks: Vec::new(), ends: Vec::new(), places: Vec::new() }
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Adds a range. False, and nothing is changed, if there is no room.
    #[must_use]
    pub fn insert(&mut self, range: Range<u64>, place: u16) -> bool {
        let at = self.marks.partition_point(|mark| mark.start <= range.start);
        // All are as long as each other, so there is room in all or in none.
        let fits = self.marks.insert(at, Mark { start: range.start, reach: range.end }).is_ok()
            && self.ends.insert(at, range.end).is_ok()
            && self.places.insert(at, place).is_ok();
        if fits {
            self.spread(at);
        }
        fits
    }

    /// Takes a range away that was added with this place.
    pub fn remove(&mut self, start: u64, place: u16) {
        let from = self.before(start);
        let same = self.marks.iter().zip(self.places.iter()).skip(from).take_while(|(mark, _)| mark.start == start);
        let Some(after) = same.into_iter().position(|(_, of)| *of == place) else { return };
        let at = from + after;
        self.marks.remove(at);
        self.ends.remove(at);
        self.places.remove(at);
        self.spread(at);
    }

    /// Takes all ranges away that begin in these host addresses.
    pub fn remove_range(&mut self, starts: Range<u64>) {
        let (from, to) = (self.before(starts.start), self.before(starts.end));
        cut(&mut self.marks, from..to);
        cut(&mut self.ends, from..to);
        cut(&mut self.places, from..to);
        self.spread(from);
    }

    /// How many begin before this.
    pub fn before(&self, start: u64) -> usize {
        self.marks.partition_point(|mark| mark.start < start)
    }

    /// How many begin before this, where all before place `low` do and none from place `high` on does.
    #[inline]
    fn before_within(&self, start: u64, low: usize, high: usize) -> usize {
        let near = self.marks.get(low..high).unwrap_or_default();
        if near.len() > FEW {
            return low + near.partition_point(|mark| mark.start < start);
        }
        // Few are counted: their lines come side by side, and no step waits for the one before.
        low + near.iter().map(|mark| usize::from(mark.start < start)).sum::<usize>()
    }

    /// Whether anything overlaps a range, where all before place `low` begin before the range's end and none from place `high`
    /// on does.
    #[inline]
    pub fn any(&self, range: &Range<u64>, low: usize, high: usize) -> bool {
        // Of what begins before the range's end, one reaches into the range, or none does.
        let to = self.before_within(range.end, low, high);
        to.checked_sub(1).and_then(|last| self.marks.get(last)).is_some_and(|mark| mark.reach > range.start)
    }

    /// The window in which everything lies that overlaps a range; `low` and `high` as for [`Hosts::any`].
    pub fn window(&self, range: &Range<u64>, low: usize, high: usize) -> Range<usize> {
        let to = self.before_within(range.end, low, high);
        // Mostly few overlap, so the search for the first goes back from the last, in steps that double.
        let reaches = |at: usize| self.marks.get(at).is_some_and(|mark| mark.reach > range.start);
        let (mut from, mut step) = (to, 1);
        while from > 0 && reaches(from - 1) {
            from = from.saturating_sub(step);
            step *= 2;
        }
        let rest = self.marks.get(from..to).unwrap_or_default();
        from + rest.partition_point(|mark| mark.reach <= range.start)..to
    }

    /// The places of what overlaps a range with this beginning, in its window, by their beginnings.
    pub fn overlapping(&self, start: u64, window: Range<usize>) -> impl Iterator<Item = u16> + '_ {
        let ends = self.ends.get(window.clone()).unwrap_or_default();
        let places = self.places.get(window).unwrap_or_default();
        ends.iter().zip(places).filter(move |(end, _)| **end > start).map(|(_, place)| *place)
    }

    /// Mends `reach` from a place on, as far as it isn't right.
    fn spread(&mut self, at: usize) {
        let mut reached = at.checked_sub(1).and_then(|before| self.marks.get(before)).map_or(0, |mark| mark.reach);
        let mut first = true;
        for (mark, end) in self.marks.iter_mut().zip(self.ends.iter()).skip(at) {
            reached = reached.max(*end);
            if mark.reach == reached && !first {
                return;
            }
            mark.reach = reached;
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

    fn hits<const N: usize>(hosts: &Hosts<N>, range: Range<u64>) -> bool {
        hosts.any(&range, 0, hosts.len())
    }

    fn found<const N: usize>(hosts: &Hosts<N>, range: Range<u64>) -> std::vec::Vec<u16> {
        hosts.overlapping(range.start, hosts.window(&range, 0, hosts.len())).collect()
    }

    #[test]
    fn a_long_range_is_found_behind_short_ones() {
        let mut hosts = Hosts::<8>::new();
        for (start, end, place) in [(0, 100, 0), (10, 11, 1), (20, 21, 2), (200, 201, 3)] {
            assert!(hosts.insert(start..end, place));
        }
        assert_eq!(found(&hosts, 50..60), [0]);
        assert!(!hits(&hosts, 100..200), "the ends are not in their ranges");
        hosts.remove(0, 0);
        assert!(!hits(&hosts, 50..60));
        assert!(hits(&hosts, 20..60));
    }

    #[test]
    fn a_full_one_takes_no_more() {
        let mut hosts = Hosts::<1>::new();
        assert!(hosts.insert(0..1, 0));
        assert!(!hosts.insert(5..6, 1));
        assert!(!hits(&hosts, 5..6));
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
                    let mut found = found(&hosts, *start..start + pages);
                    let mut right: std::vec::Vec<_> =
                        all.iter().filter(|of| of.0 < start + pages && of.1 > *start).map(|of| of.2).collect();
                    found.sort_unstable();
                    right.sort_unstable();
                    prop_assert_eq!(hits(&hosts, *start..start + pages), !right.is_empty());
                    prop_assert_eq!(found, right);
                }
            }
        }
    }
}
