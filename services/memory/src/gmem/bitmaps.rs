//! A bit for each page, of which most are alike: bitmaps of 512 pages from one pool, there where a bit is set.

use core::ops::Range;

use heapless::Vec;

use crate::keyed::Keyed;

/// Pages of one bitmap.
pub const PAGES: u64 = 512;

/// What a bit says of a VM's guest frame, or of a page of a gmem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// Of a gmem: the memory was broken, and none has taken its place.
    Poisoned = 0,
    /// Of a VM: the guest wants it private.
    Private = 1,
}

/// At most `N` bitmaps.
#[derive(Debug)]
pub struct Bitmaps<const N: usize> {
    maps: Vec<[u64; 8], N>,
    free: Vec<u16, N>,
    index: Keyed<N>,
}

/// Of a plane of one gmem or VM, the key of a page's bitmap.
fn key(plane: Plane, of: u16, page: u64) -> u64 {
    (plane as u64) << 60 | u64::from(of) << 40 | (page / PAGES)
}

/// The keys of a range's bitmaps.
fn keys(plane: Plane, of: u16, pages: &Range<u64>) -> Range<u64> {
    if pages.is_empty() { 0..0 } else { key(plane, of, pages.start)..key(plane, of, pages.end - 1) + 1 }
}

impl<const N: usize> Bitmaps<N> {
    /// Without bits.
    pub const fn new() -> Self {
        Self { maps: Vec::new(), free: Vec::new(), index: Keyed::new() }
    }

    /// Bitmaps that are left.
    pub fn left(&self) -> usize {
        N - self.index.len()
    }

    /// A page's bit.
    pub fn get(&self, plane: Plane, of: u16, page: u64) -> bool {
        let map = self.index.get(key(plane, of, page)).and_then(|place| self.maps.get(usize::from(place)));
        map.and_then(|map| map.get((page % PAGES / 64) as usize)).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// How many bits of a range are set.
    pub fn count(&self, plane: Plane, of: u16, pages: &Range<u64>) -> u64 {
        let mut count = 0;
        for (key, place) in self.index.range(keys(plane, of, pages)) {
            for (at, mask) in words((key & ((1 << 40) - 1)) * PAGES, pages) {
                let bits = self.maps.get(usize::from(place)).and_then(|map| map.get(at)).map_or(0, |word| word & mask);
                count += u64::from(bits.count_ones());
            }
        }
        count
    }

    /// Bitmaps that a plane of one gmem or VM has.
    pub fn pieces(&self, plane: Plane, of: u16) -> u64 {
        self.index.range(key(plane, of, 0)..key(plane, of, 0) + (1 << 40)).count() as u64
    }

    /// Bitmaps that a range lacks.
    pub fn lacking(&self, plane: Plane, of: u16, pages: &Range<u64>) -> u64 {
        let keys = keys(plane, of, pages);
        keys.end - keys.start - self.index.range(keys).count() as u64
    }

    /// Sees to it that no bit of a range lacks its bitmap: after that, setting them can't fail. False, and nothing is changed, if
    /// there is no room.
    #[must_use]
    pub fn reserve(&mut self, plane: Plane, of: u16, pages: &Range<u64>) -> bool {
        let keys = keys(plane, of, pages);
        let there = self.index.range(keys.clone()).count() as u64;
        if keys.end - keys.start - there > self.left() as u64 {
            return false;
        }
        for key in keys {
            if self.index.get(key).is_some() {
                continue;
            }
            // As many are left as are needed.
            let place = self.free.pop().unwrap_or(self.maps.len() as u16);
            let _ = if let Some(map) = self.maps.get_mut(usize::from(place)) {
                *map = [0; 8];
                Ok(())
            } else {
                self.maps.push([0; 8])
            };
            let _ = self.index.insert(key, place);
        }
        true
    }

    /// Sets the bits of a range that was reserved.
    pub fn set(&mut self, plane: Plane, of: u16, pages: &Range<u64>) {
        for (key, place) in self.index.range(keys(plane, of, pages)) {
            let Some(map) = self.maps.get_mut(usize::from(place)) else { continue };
            for (at, mask) in words((key & ((1 << 40) - 1)) * PAGES, pages) {
                if let Some(word) = map.get_mut(at) {
                    *word |= mask;
                }
            }
        }
    }

    /// Clears the bits of a range. Bitmaps without bits go, those that were only reserved, too.
    pub fn clear(&mut self, plane: Plane, of: u16, pages: &Range<u64>) {
        self.drop_empty(keys(plane, of, pages), pages);
    }

    /// What was reserved for a range and isn't needed goes.
    pub fn trim(&mut self, plane: Plane, of: u16, pages: &Range<u64>) {
        self.drop_empty(keys(plane, of, pages), &(0..0));
    }

    /// Clears bits, and drops those of these bitmaps that are without.
    fn drop_empty(&mut self, keys: Range<u64>, pages: &Range<u64>) {
        let mut from = keys.start;
        loop {
            let next = self.index.range(from..keys.end).next();
            let Some((key, place)) = next else { return };
            from = key + 1;
            let Some(map) = self.maps.get_mut(usize::from(place)) else { continue };
            for (at, mask) in words((key & ((1 << 40) - 1)) * PAGES, pages) {
                if let Some(word) = map.get_mut(at) {
                    *word &= !mask;
                }
            }
            if *map == [0; 8] {
                self.index.remove(key);
                let _ = self.free.push(place);
            }
        }
    }

    /// Takes all bits of a plane away.
    pub fn drop_all(&mut self, plane: Plane, of: u16) {
        let Self { index, free, .. } = self;
        let base = key(plane, of, 0);
        index.remove_range(base..base + (1 << 40), |place| {
            let _ = free.push(place);
        });
    }
}

impl<const N: usize> Default for Bitmaps<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Of the bitmap that begins with page `base`, the words that hold bits of a range, and which.
fn words(base: u64, pages: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let (from, to) = (pages.start.max(base) - base, pages.end.min(base + PAGES).saturating_sub(base));
    (0..8u64).filter_map(move |at| {
        let (low, high) = (from.max(at * 64), to.min(at * 64 + 64));
        (low < high).then(|| (at as usize, u64::MAX >> (64 - (high - low)) << (low % 64)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserving_is_all_or_nothing() {
        let mut bits = Bitmaps::<3>::new();
        assert!(!bits.reserve(Plane::Private, 1, &(0..4 * PAGES)));
        assert_eq!(bits.left(), 3);
        assert!(!bits.reserve(Plane::Private, 1, &(0..1 << 40)));
        assert!(bits.reserve(Plane::Private, 1, &(10..PAGES + 1)));
        assert!(bits.reserve(Plane::Private, 1, &(0..2 * PAGES)), "what is there isn't needed twice");
        assert_eq!(bits.left(), 1);
        bits.clear(Plane::Private, 1, &(0..1 << 40));
        assert_eq!(bits.left(), 3);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_pages(steps in prop::collection::vec((any::<bool>(), 0..3000u64, 1..1200u64), 0..30)) {
            let (mut bits, mut set) = (Bitmaps::<5>::new(), BTreeSet::new());
            for (on, start, pages) in steps {
                let range = start..start + pages;
                if !on {
                    bits.clear(Plane::Private, 3, &range);
                    set.retain(|page| !range.contains(page));
                } else if bits.reserve(Plane::Private, 3, &range) {
                    bits.set(Plane::Private, 3, &range);
                    set.extend(range.clone());
                }
                prop_assert!((0..5000).all(|page| bits.get(Plane::Private, 3, page) == set.contains(&page)));
                prop_assert_eq!(bits.count(Plane::Private, 3, &range), set.range(range.clone()).count() as u64);
                let others = bits.count(Plane::Private, 4, &(0..5000)) + bits.count(Plane::Poisoned, 3, &(0..5000));
                prop_assert_eq!(others, 0, "they have nothing to do with it");
            }
            bits.drop_all(Plane::Private, 3);
            prop_assert_eq!(bits.left(), 5);
        }
    }
}
