//! The atomics in use: the real ones, or loom's when it explores interleavings.

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
