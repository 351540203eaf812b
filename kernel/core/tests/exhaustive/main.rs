//! Every state that the kernel's tables can come into, for a few frames, VMs, CPUs, batches and ASIDs.
//!
//! The tables are the kernel's own and so are the operations; a state is what they hold. A model puts one into a kernel,
//! lets it do one thing on a machine whose caches it knows, and takes the next state out. stateright walks through all of them.
#![cfg(not(any(loom, miri)))]

mod asids;
mod board;
#[path = "../common/mod.rs"]
mod common;
mod events;
mod frames;
mod machine;
mod recycling;
mod state;
