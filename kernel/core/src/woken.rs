//! How a context is handed to the CPU that it is at home on.
//!
//! Whoever makes it ready puts it here and then interrupts the CPU. The CPU takes what is here each time before it
//! chooses what runs; from its last look on until it waits it takes no interrupt, so one that came meanwhile ends the
//! wait at once. `tests/loom` explores it.

use crate::prelude::*;

initial! {
    /// Contexts that others made ready for one CPU.
    pub struct Woken {
        words: [AtomicU64; WORDS] = array![AtomicU64::new(0); WORDS],
        /// Not 0 when something may be there.
        any: AtomicU64 = AtomicU64::new(0),
    }
}

impl Woken {
    /// Puts a context here. Its CPU has to be interrupted after this.
    pub fn put(&self, context: Context) {
        self.words[context.index() / 64].fetch_or(1 << (context.index() % 64), Ordering::SeqCst);
        self.any.store(1, Ordering::SeqCst);
    }

    /// Takes all.
    pub fn take(&self, mut ready: impl FnMut(Context)) {
        if self.any.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.any.swap(0, Ordering::SeqCst);
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                members(index, word.swap(0, Ordering::SeqCst)).for_each(&mut ready);
            }
        }
    }
}
