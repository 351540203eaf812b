//! The kernel's rules on a machine that only remembers.
//!
//! Under Miri just the tables by themselves: it walks through all of the kernel's state at each reborrow of it.
#![cfg(not(loom))]

mod frames;
#[cfg(not(miri))]
mod kernel;
mod rmp;
