//! Pages that this service shares with another for good: the holder writes, the other reads.
//!
//! Every access is one atomic load or store of an aligned word, relaxed: a value is whole, and nothing is said of its
//! neighbours.

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_proto::addr::PAGE_SIZE;
use caisson_proto::info::{ShareInfo, ShareUse};
use caisson_proto::stats::{MAX_SHARED_PAGES, SHARES};
use caisson_proto::wire::Field;

use crate::info;

/// Words of a page.
pub const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;

/// The shares of this service that have this use.
pub fn all(wanted: ShareUse) -> impl Iterator<Item = &'static ShareInfo> {
    let inside = |share: &&ShareInfo| u64::from(share.first) + u64::from(share.pages) <= MAX_SHARED_PAGES;
    let of_use = move |share: &&ShareInfo| ShareUse::from_word(share.purpose.into()) == Some(wanted);
    info().share.iter().filter(|share| share.role != 0).filter(inside).filter(of_use)
}

/// A window onto them.
#[derive(Clone, Copy, Debug)]
pub struct ShareWindow {
    /// The first word.
    base: u64,
    /// How many words can be read, and how many can be set: all or none.
    readable: usize,
    writable: usize,
}

impl ShareWindow {
    /// A window onto nothing.
    pub const NONE: Self = Self { base: SHARES, readable: 0, writable: 0 };

    const fn of(info: &ShareInfo, writes: bool) -> Self {
        let words = info.pages as usize * PAGE_WORDS;
        let base = SHARES + info.first as u64 * PAGE_SIZE;
        Self { base, readable: words, writable: if writes { words } else { 0 } }
    }

    /// The share of this use that this service writes.
    pub fn held(wanted: ShareUse) -> Option<Self> {
        all(wanted).find(|info| info.role == ShareInfo::HOLDER).map(|info| Self::of(info, true))
    }

    /// Those of this use that it reads, with what the build tells of them.
    pub fn read(wanted: ShareUse) -> impl Iterator<Item = (&'static ShareInfo, Self)> {
        all(wanted).filter(|info| info.role == ShareInfo::READER).map(|info| (info, Self::of(info, false)))
    }

    /// How many words it has.
    pub const fn words(&self) -> usize {
        self.readable
    }

    #[inline(always)]
    fn at(&self, word: usize, words: usize) -> Option<&'static AtomicU64> {
        if word >= words {
            return None;
        }
        // SAFETY: the kernel maps the pages of every share of the info page for the life of this service; `all` lets pass
        // those only that lie in the range for them, a window is made of nothing else, and the word was found to be inside. It
        // is aligned. All parties use atomics on it; who only reads has no way to a store.
        Some(unsafe { AtomicU64::from_ptr((self.base + word as u64 * 8) as *mut u64) })
    }

    /// A word; 0 past the end.
    #[inline]
    pub fn load(&self, word: usize) -> u64 {
        self.at(word, self.readable).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets a word. Past the end, or where this service only reads, nothing happens.
    #[inline]
    pub fn store(&self, word: usize, value: u64) {
        if let Some(word) = self.at(word, self.writable) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Adds to a word, as [`store`](Self::store) does: nobody else writes it, so this is no locked operation.
    #[inline(always)]
    pub fn add(&self, word: usize, more: u64) {
        if let Some(word) = self.at(word, self.writable) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }
}
