//! What notifications cost: the way Caisson does it, what Linux does, and the naive way, in one run beside each other.
//!
//! [`ways`] has the three; they work on the same [`vm`]. [`costs`] measures single events, [`storm`] events while faults come,
//! [`unmap`] how long a fault waits for a large one.
#![forbid(unsafe_code)]

pub mod costs;
pub mod counts;
pub mod layout;
pub mod locks;
pub mod report;
pub mod storm;
pub mod tree;
pub mod unmap;
pub mod vm;
pub mod ways;

#[cfg(test)]
mod tests;
