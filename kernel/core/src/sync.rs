//! The atomics in use: the real ones, or loom's when it explores interleavings.

use core::marker::PhantomData;

use caisson_proto::wire::Field;

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::MutexGuard;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub use spin::{Mutex, MutexGuard};

/// A lock that loom sees. Whoever can't have it waits for it: to try again and again would be the same in more steps.
#[cfg(loom)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    /// Unlocked.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Takes it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes it, once that is possible.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Some(self.lock())
    }
}

/// Declares structures whose fields begin with what stands after `=`. `new` makes one in a constant; but under loom,
/// whose atomics can't be made there.
macro_rules! initial {
    ($($(#[$meta:meta])* $vis:vis struct $name:ident $(($arg:ident: $arg_type:ty))? {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty = $value:expr,)+
    })+) => { $(
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)+ }

        impl $name {
            /// As it begins.
            #[cfg(not(loom))]
            $vis const fn new($($arg: $arg_type)?) -> Self { Self { $($field: $value,)+ } }

            /// As it begins.
            #[cfg(loom)]
            $vis fn new($($arg: $arg_type)?) -> Self { Self { $($field: $value,)+ } }
        }
    )+ };
}

/// An array in [`initial!`] whose elements aren't `Copy`.
macro_rules! array {
    ($value:expr; $count:expr) => {{
        #[cfg(not(loom))]
        let array = [const { $value }; $count];
        #[cfg(loom)]
        let array = core::array::from_fn(|_| $value);
        array
    }};
}
pub(crate) use {array, initial};

/// Between a `SeqCst` write here and a `SeqCst` read of what another CPU writes: one of two CPUs that do this to each
/// other sees the other's write. The accesses themselves guarantee it; loom takes them for acquire and release, and
/// needs to be told.
#[inline(always)]
pub fn settled() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// A value that CPUs share, as its word. What another CPU did before it set it is seen by who gets it.
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
    pub fn get(&self) -> T {
        T::from_word(self.word()).unwrap_or_default()
    }

    /// Its word.
    pub fn word(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Whether it is this value: cheaper than [`get`](Self::get).
    pub fn is(&self, value: T) -> bool {
        self.word() == value.to_word()
    }

    /// Changes it.
    pub fn set(&self, value: T) {
        self.0.store(value.to_word(), Ordering::Release);
    }

    /// Changes it, in one order with all other such changes. Returns what it was.
    pub fn swap(&self, value: T) -> T {
        T::from_word(self.0.swap(value.to_word(), Ordering::SeqCst)).unwrap_or_default()
    }

    /// Changes it from one value to another unless it is a third, in one order with all other such changes.
    pub fn change(&self, from: T, to: T) -> bool {
        self.0.compare_exchange(from.to_word(), to.to_word(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
