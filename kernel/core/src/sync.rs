//! The atomics in use: the real ones, or loom's when it explores interleavings.

use core::marker::PhantomData;

use caisson_proto::wire::Field;

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Between a `SeqCst` write here and a `SeqCst` read of what another CPU writes: one of two CPUs that do this to each
/// other sees the other's write. The accesses themselves guarantee it; loom takes them for acquire and release, and
/// needs to be told.
#[inline(always)]
pub fn settled() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// A value that CPUs share, as its word. What another CPU did before it set it is seen by who gets it.
#[derive(Debug)]
pub struct Atomic<T>(AtomicU64, PhantomData<T>);

impl<T: Field + Default> Atomic<T> {
    /// The value that `word` stands for.
    #[cfg(not(loom))]
    pub const fn new(word: u64) -> Self {
        Self(AtomicU64::new(word), PhantomData)
    }

    /// The value that `word` stands for.
    #[cfg(loom)]
    pub fn new(word: u64) -> Self {
        Self(AtomicU64::new(word), PhantomData)
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        T::from_word(self.0.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Changes it.
    #[inline]
    pub fn set(&self, value: T) {
        self.0.store(value.to_word(), Ordering::Release);
    }

    /// Changes it, in one order with all other such changes. Returns what it was.
    #[inline]
    pub fn swap(&self, value: T) -> T {
        T::from_word(self.0.swap(value.to_word(), Ordering::SeqCst)).unwrap_or_default()
    }

    /// Changes it from one value to another unless it is a third, in one order with all other such changes.
    #[inline]
    pub fn change(&self, from: T, to: T) -> bool {
        self.0.compare_exchange(from.to_word(), to.to_word(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
