//! Doorbells of a service, and whether its activation is on its way. No lock.
//!
//! Whoever rings notes the bits first and then looks whether an activation is queued; the activation, once done,
//! first says so and then looks for bits. So between the two a bell is neither lost nor does it queue twice.
//! `tests/loom` explores it.

use crate::prelude::*;

initial! {
    /// The doorbells of one service.
    pub struct Bells {
        /// Rang and not taken.
        rung: AtomicU64 = AtomicU64::new(0),
        /// 1 while an activation is queued or runs.
        queued: AtomicU8 = AtomicU8::new(0),
        /// 1 from a restart on until the activation takes the first message, for which the restart took the turn.
        fresh: AtomicU8 = AtomicU8::new(0),
    }
}

impl Bells {
    /// Notes bells.
    pub fn ring(&self, bits: u64) {
        self.rung.fetch_or(bits, Ordering::SeqCst);
        settled();
    }

    /// Queues the activation. True: it was not queued, and the caller has to make it run.
    pub fn queue(&self) -> bool {
        self.queued.swap(1, Ordering::SeqCst) == 0
    }

    /// Takes what rang.
    pub fn take(&self) -> u64 {
        self.rung.swap(0, Ordering::SeqCst)
    }

    /// Takes the first message of a life. False if it was taken.
    pub fn take_fresh(&self) -> bool {
        self.fresh.swap(0, Ordering::SeqCst) == 1
    }

    /// The activation has run. True: it has to run again.
    pub fn done(&self) -> bool {
        self.queued.swap(0, Ordering::SeqCst);
        settled();
        self.any()
    }

    /// A new life: forgets what rang for the old one; the first message waits.
    pub fn refresh(&self) {
        self.rung.store(0, Ordering::SeqCst);
        self.fresh.store(1, Ordering::SeqCst);
        settled();
    }

    /// Whether something rang that nobody took.
    pub fn any(&self) -> bool {
        self.rung.load(Ordering::SeqCst) != 0 || self.fresh.load(Ordering::SeqCst) != 0
    }

    /// Whether the activation is on its way, for the model's checks.
    #[cfg(loom)]
    pub fn is_queued(&self) -> bool {
        self.queued.load(Ordering::SeqCst) != 0
    }
}
