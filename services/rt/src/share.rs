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
const HOLDER: u8 = 1;
const READER: u8 = 2;

/// The shares of this service that have this use.
pub fn all(wanted: ShareUse) -> impl Iterator<Item = &'static ShareInfo> {
    let inside = |share: &&ShareInfo| u64::from(share.first) + u64::from(share.pages) <= MAX_SHARED_PAGES;
    let of_use = move |share: &&ShareInfo| ShareUse::from_word(share.purpose.into()) == Some(wanted);
    info().share.iter().filter(|share| share.role != 0).filter(inside).filter(of_use)
}

/// A window onto them.
#[derive(Clone, Copy, Debug)]
pub struct ShareWindow {
    info: &'static ShareInfo,
    /// Whether stores are possible.
    writes: bool,
}

impl ShareWindow {
    /// The share of this use that this service writes.
    pub fn held(wanted: ShareUse) -> Option<Self> {
        all(wanted).find(|info| info.role == HOLDER).map(|info| Self { info, writes: true })
    }

    /// Those of this use that it reads.
    pub fn read(wanted: ShareUse) -> impl Iterator<Item = Self> {
        all(wanted).filter(|info| info.role == READER).map(|info| Self { info, writes: false })
    }

    /// What the build tells of it.
    pub fn info(&self) -> &'static ShareInfo {
        self.info
    }

    /// How many words it has.
    pub fn words(&self) -> usize {
        usize::from(self.info.pages) * PAGE_WORDS
    }

    #[inline]
    fn at(&self, word: usize) -> Option<&'static AtomicU64> {
        if word >= self.words() {
            return None;
        }
        let address = SHARES + u64::from(self.info.first) * PAGE_SIZE + word as u64 * 8;
        // SAFETY: the kernel maps the pages of every share of the info page for the life of this service; `all` lets pass
        // those only that lie in the range for them, and the word was found to be inside. It is aligned. All parties use
        // atomics on it; who only reads has no way to a store.
        Some(unsafe { AtomicU64::from_ptr(address as *mut u64) })
    }

    /// A word; 0 past the end.
    #[inline]
    pub fn load(&self, word: usize) -> u64 {
        self.at(word).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets a word. Past the end, or where this service only reads, nothing happens.
    #[inline]
    pub fn store(&self, word: usize, value: u64) {
        if let Some(word) = self.at(word).filter(|_| self.writes) {
            word.store(value, Ordering::Relaxed);
        }
    }
}
