//! The atomics in use: the real ones, or loom's when it explores interleavings.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering};
