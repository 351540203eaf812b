//! How a context is handed to the CPU that it is at home on.
//!
//! Whoever makes it ready puts it here and then interrupts the CPU. The CPU takes what is here each time before it
//! chooses what runs; from its last look on until it waits it takes no interrupt, so one that came meanwhile ends the
//! wait at once. `tests/loom.rs` explores it.

use crate::context::{Context, WORDS, members};
use crate::sync::{AtomicU64, Ordering};

/// Contexts that others made ready for one CPU.
#[derive(Debug)]
pub struct Woken([AtomicU64; WORDS]);

impl Woken {
    /// None.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// None.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Puts a context here. Its CPU has to be interrupted after this.
    pub fn put(&self, context: Context) {
        if let Some(word) = self.0.get(context.index() / 64) {
            word.fetch_or(1 << (context.index() % 64), Ordering::SeqCst);
        }
    }

    /// Takes all.
    #[inline]
    pub fn take(&self, mut ready: impl FnMut(Context)) {
        for (index, word) in self.0.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                members(index, word.swap(0, Ordering::SeqCst)).for_each(&mut ready);
            }
        }
    }
}
