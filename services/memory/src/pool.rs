//! Which frames are free: a cache of the kernel's table, without a heap.
//!
//! Memory is divided into chunks of 2 MiB. A chunk that is free as a whole is one bit; guest memory takes those.
//! Of chunks that are free in part, [`PARTIAL`] are known frame by frame; tables and vCPUs take from them. If more
//! are partly free, some are forgotten until the next enumeration.

use caisson_proto::addr::{Frame, LARGE_PAGES};
use heapless::Vec;

/// Chunks that can be managed: 1 TiB. Frames above are never used.
pub const CHUNKS: usize = 1 << 19;
/// Partly free chunks that are known.
pub const PARTIAL: usize = 64;

const WORDS: usize = LARGE_PAGES as usize / 64;

#[derive(Clone, Debug)]
struct Partial {
    chunk: usize,
    free: [u64; WORDS],
}

impl Partial {
    fn count(&self) -> u32 {
        self.free.iter().map(|word| word.count_ones()).sum()
    }

    fn set(&mut self, first: usize, count: usize, free: bool) {
        let (mut at, end) = (first, first + count);
        while let Some(word) = self.free.get_mut(at / 64).filter(|_| at < end) {
            let bits = (64 - at % 64).min(end - at);
            let mask = u64::MAX >> (64 - bits) << (at % 64);
            if free {
                *word |= mask
            } else {
                *word &= !mask
            }
            at += bits;
        }
    }

    /// The lowest run of `count` free frames.
    fn find(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        for (at, &word) in self.free.iter().enumerate() {
            // Words of which all or none are free, and there are many, are passed at once.
            if word == 0 || word == u64::MAX && run + 64 < count {
                run = if word == 0 { 0 } else { run + 64 };
                continue;
            }
            for bit in 0..64 {
                run = if word >> bit & 1 == 1 { run + 1 } else { 0 };
                if run == count {
                    return Some(at * 64 + bit + 1 - count);
                }
            }
        }
        None
    }
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    chunks: [u64; CHUNKS / 64],
    partial: Vec<Partial, PARTIAL>,
    /// Words of `chunks` below this one are zero.
    low: usize,
    /// And so are those from this one on.
    high: usize,
    forgot: bool,
}

impl Pool {
    /// Empty.
    pub const fn new() -> Self {
        Self { chunks: [0; CHUNKS / 64], partial: Vec::new(), low: 0, high: 0, forgot: false }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.chunks.iter_mut().take(self.high).for_each(|word| *word = 0);
        self.high = 0;
        self.partial.clear();
        self.low = 0;
        self.forgot = false;
    }

    /// Whether free frames were forgotten since the pool was cleared.
    pub const fn forgot(&self) -> bool {
        self.forgot
    }

    /// Free frames that are known.
    pub fn free(&self) -> u64 {
        let whole: u64 = self.chunks.iter().take(self.high).map(|word| u64::from(word.count_ones())).sum();
        whole * LARGE_PAGES + self.partial.iter().map(|partial| u64::from(partial.count())).sum::<u64>()
    }

    /// Takes `count` frames in a row, 1 to 512; 512 are a whole chunk. `None` if there is no such run.
    pub fn take(&mut self, count: u64) -> Option<Frame> {
        match count {
            LARGE_PAGES => self.take_chunk().map(|chunk| Frame(chunk as u64 * LARGE_PAGES)),
            1..LARGE_PAGES => self.take_small(count as usize),
            _ => None,
        }
    }

    fn take_chunk(&mut self) -> Option<usize> {
        let mut words = self.chunks.iter_mut().enumerate().take(self.high).skip(self.low);
        let (at, word) = words.find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        self.low = at;
        Some(at * 64 + bit)
    }

    fn take_small(&mut self, count: usize) -> Option<Frame> {
        for (at, partial) in self.partial.iter_mut().enumerate() {
            if let Some(first) = partial.find(count) {
                partial.set(first, count, false);
                let frame = Frame(partial.chunk as u64 * LARGE_PAGES + first as u64);
                if partial.count() == 0 {
                    self.partial.swap_remove(at);
                }
                return Some(frame);
            }
        }
        let chunk = self.take_chunk()?;
        let mut partial = Partial { chunk, free: [u64::MAX; WORDS] };
        partial.set(0, count, false);
        self.keep(partial);
        Some(Frame(chunk as u64 * LARGE_PAGES))
    }

    /// Frames are free again, or were found free. Those that are known already stay known once.
    pub fn give_back(&mut self, first: Frame, count: u64) {
        let end = first.0.saturating_add(count).min(CHUNKS as u64 * LARGE_PAGES);
        let mut at = first.0;
        while at < end {
            let chunk_end = (at / LARGE_PAGES + 1) * LARGE_PAGES;
            let part = chunk_end.min(end) - at;
            self.give_back_part((at / LARGE_PAGES) as usize, (at % LARGE_PAGES) as usize, part as usize);
            at += part;
        }
    }

    fn give_back_part(&mut self, chunk: usize, first: usize, count: usize) {
        let Some(word) = self.chunks.get(chunk / 64) else { return };
        if word >> (chunk % 64) & 1 == 1 {
            return;
        }
        let known = self.partial.iter().position(|partial| partial.chunk == chunk);
        let mut partial = match known {
            Some(at) => self.partial.swap_remove(at),
            None => Partial { chunk, free: [0; WORDS] },
        };
        partial.set(first, count, true);
        if u64::from(partial.count()) < LARGE_PAGES {
            self.keep(partial);
        } else if let Some(word) = self.chunks.get_mut(chunk / 64) {
            *word |= 1 << (chunk % 64);
            self.low = self.low.min(chunk / 64);
            self.high = self.high.max(chunk / 64 + 1);
        }
    }

    /// Keeps a partly free chunk, in the place of the one with the fewest free frames if there is no other.
    fn keep(&mut self, partial: Partial) {
        if partial.count() == 0 {
            return;
        }
        let Err(partial) = self.partial.push(partial) else { return };
        self.forgot = true;
        let poorest = self.partial.iter_mut().min_by_key(|known| known.count());
        if let Some(poorest) = poorest.filter(|poorest| poorest.count() < partial.count()) {
            *poorest = partial;
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_chunk_comes_back_together() {
        let mut pool = Pool::new();
        pool.give_back(Frame(1024), 512);
        assert_eq!(pool.take(7), Some(Frame(1024)));
        assert_eq!(pool.take(512), None);
        pool.give_back(Frame(1024), 7);
        assert_eq!(pool.take(512), Some(Frame(1024)));
        assert_eq!((pool.take(1), pool.free()), (None, 0));
    }

    #[test]
    fn frames_beyond_what_it_manages_are_left_alone() {
        let mut pool = Pool::new();
        pool.give_back(Frame(CHUNKS as u64 * 512 - 1), 5000);
        pool.give_back(Frame(u64::MAX - 3), 512);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn what_is_forgotten_is_told() {
        let mut pool = Pool::new();
        for chunk in 0..PARTIAL as u64 {
            pool.give_back(Frame(chunk * 512), 2);
        }
        assert!(!pool.forgot());
        pool.give_back(Frame(PARTIAL as u64 * 512), 3);
        assert!(pool.forgot());
        assert_eq!(pool.take(3), Some(Frame(PARTIAL as u64 * 512)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_handed_out_twice(
            runs in prop::collection::vec((0..10_000u64, 1..1000u64), 1..12),
            takes in prop::collection::vec((1..=512u64, any::<bool>()), 0..60),
        ) {
            let mut pool = Box::new(Pool::new());
            let mut free = BTreeSet::new();
            for (first, count) in runs {
                pool.give_back(Frame(first), count);
                free.extend(first..first + count);
            }
            prop_assert!(pool.forgot() || pool.free() == free.len() as u64);
            for (count, back) in takes {
                if let Some(first) = pool.take(count) {
                    for frame in first.0..first.0 + count {
                        prop_assert!(free.remove(&frame), "{frame} isn't free");
                    }
                    if back {
                        pool.give_back(first, count);
                        free.extend(first.0..first.0 + count);
                    }
                }
            }
            prop_assert!(pool.forgot() || pool.free() == free.len() as u64);
        }
    }
}
