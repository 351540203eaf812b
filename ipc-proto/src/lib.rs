//! What crosses a boundary in Caisson: system calls, ids, addresses and messages.
//!
//! Every interface has one file, with its requests, its replies and its errors. A request is at most one cache
//! line: eight 64-bit words, which travel in registers. The first word is the operation, the others one field
//! each; [`wire`] has the codec and refuses every word that isn't canonical.
//! What doesn't fit travels in a leased page or in a ring's slots, as `zerocopy` types.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
pub mod wire;

pub mod abi;
pub mod addr;
pub mod bundle;
pub mod console;
pub mod cpuid;
pub mod exits;
pub mod firmware;
pub mod info;
pub mod kernel;
pub mod layout;
pub mod mailbox;
pub mod memory;
pub mod notifier;
pub mod prelude;
pub mod ring;
pub mod rmp;
pub mod slots;
pub mod stats;
pub mod supervisor;
pub mod switch;
pub mod vcpu;
#[cfg(feature = "config")]
pub mod vmm;
