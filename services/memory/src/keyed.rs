//! An index of a pool without a heap: keys in order, each with a place in the pool.
//!
//! Two arrays side by side: a search touches keys alone. Inserting moves what lies behind, which is a copy of some hundred
//! kilobytes at the most and happens when slots or bitmaps come and go, not when they are used.

use core::ops::Range;

use heapless::Vec;

/// At most `N` keys, each once.
#[derive(Debug)]
pub struct Keyed<const N: usize> {
    keys: Vec<u64, N>,
    places: Vec<u16, N>,
}

impl<const N: usize> Keyed<N> {
    /// Without keys.
    pub const fn new() -> Self {
        Self { keys: Vec::new(), places: Vec::new() }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The place of this key.
    pub fn get(&self, key: u64) -> Option<u16> {
        self.keys.binary_search(&key).ok().and_then(|at| self.places.get(at)).copied()
    }

    /// The place of the highest key up to this one.
    pub fn floor(&self, key: u64) -> Option<u16> {
        let after = self.keys.partition_point(|of| *of <= key);
        after.checked_sub(1).and_then(|at| self.places.get(at)).copied()
    }

    /// The keys in a range, and their places, in order.
    pub fn range(&self, keys: Range<u64>) -> impl Iterator<Item = (u64, u16)> + '_ {
        let from = self.keys.partition_point(|of| *of < keys.start);
        let both = self.keys.iter().zip(self.places.iter()).skip(from);
        both.take_while(move |(key, _)| **key < keys.end).map(|(key, place)| (*key, *place))
    }

    /// Adds a key. False, and nothing is changed, if it is there or there is no room.
    #[must_use]
    pub fn insert(&mut self, key: u64, place: u16) -> bool {
        let Err(at) = self.keys.binary_search(&key) else { return false };
        // Both are as long as each other, so there is room in both or in none.
        self.keys.insert(at, key).is_ok() && self.places.insert(at, place).is_ok()
    }

    /// Takes a key away, and says what its place was.
    pub fn remove(&mut self, key: u64) -> Option<u16> {
        let at = self.keys.binary_search(&key).ok()?;
        self.keys.remove(at);
        Some(self.places.remove(at))
    }

    /// Takes all keys in a range away, in one go; `gone` hears of their places.
    pub fn remove_range(&mut self, keys: Range<u64>, mut gone: impl FnMut(u16)) {
        let from = self.keys.partition_point(|of| *of < keys.start);
        let to = self.keys.partition_point(|of| *of < keys.end);
        self.places.iter().take(to).skip(from).for_each(|place| gone(*place));
        cut(&mut self.keys, from..to);
        cut(&mut self.places, from..to);
    }
}

impl<const N: usize> Default for Keyed<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes a stretch out of an array.
pub(crate) fn cut<T: Copy, const N: usize>(of: &mut Vec<T, N>, stretch: Range<usize>) {
    if stretch.start < stretch.end && stretch.end <= of.len() {
        of.copy_within(stretch.end.., stretch.start);
        of.truncate(of.len() - (stretch.end - stretch.start));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_there_once_and_a_full_index_takes_no_more() {
        let mut keyed = Keyed::<2>::new();
        assert!(keyed.insert(5, 1));
        assert!(!keyed.insert(5, 2));
        assert!(keyed.insert(4, 3));
        assert!(!keyed.insert(6, 4));
        assert_eq!((keyed.get(5), keyed.get(6), keyed.len()), (Some(1), None, 2));
        assert_eq!((keyed.remove(6), keyed.remove(4)), (None, Some(3)));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..4u8, 0..40u64, 0..40u64), 0..80)) {
            let (mut keyed, mut map) = (Keyed::<16>::new(), BTreeMap::new());
            for (what, key, other) in steps {
                match what {
                    0 => {
                        let fits = map.len() < 16 && !map.contains_key(&key);
                        prop_assert_eq!(keyed.insert(key, other as u16), fits);
                        if fits {
                            map.insert(key, other as u16);
                        }
                    }
                    1 => prop_assert_eq!(keyed.remove(key), map.remove(&key)),
                    2 => prop_assert_eq!(keyed.floor(key), map.range(..=key).next_back().map(|(_, place)| *place)),
                    _ => {
                        let mut gone = std::vec::Vec::new();
                        keyed.remove_range(key..other, |place| gone.push(place));
                        let taken: std::vec::Vec<_> = map.iter().filter(|(of, _)| (key..other).contains(*of)).map(|(_, place)| *place).collect();
                        map.retain(|of, _| !(key..other).contains(of));
                        prop_assert_eq!(gone, taken);
                    }
                }
                let all: std::vec::Vec<_> = keyed.range(0..u64::MAX).collect();
                prop_assert_eq!(all, map.iter().map(|(key, place)| (*key, *place)).collect::<std::vec::Vec<_>>());
                prop_assert_eq!(keyed.get(key), map.get(&key).copied());
            }
        }
    }
}
