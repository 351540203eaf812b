//! The pure half of Caisson's kernel: every table and every rule, no instruction.
//!
//! Nothing here dereferences an address or executes a privileged instruction; what must happen to the machine is
//! asked of a [`machine::Machine`], which `kernel/hw` is on silicon and QEMU and `board/host` in simulation.
//!
//! One call, from a vCPU's exit to its vmm and on to memory, goes [`schedule`] → [`ipc`] → `ops`; [`turn`] says
//! who is served, [`death`] what happens when a service ends. [`frames`], [`batches`], [`invalidation`] and
//! [`vms`] are the tables that hold the invariants.
#![no_std]
#![forbid(unsafe_code)]
// What statics hold is made by a const `new`; a `Default` beside it would have no caller.
#![allow(clippy::new_without_default)]

pub mod asids;
pub mod batches;
pub mod bells;
pub mod boot;
pub mod bundle;
pub mod context;
pub mod cpu;
pub mod cpus;
pub mod death;
pub mod early;
pub mod event;
pub mod frames;
pub mod here;
pub mod invalidation;
pub mod ipc;
pub mod kernel;
pub mod machine;
mod ops;
mod prelude;
pub mod rmp;
pub mod schedule;
pub mod service;
pub mod svm;
pub mod sync;
pub mod turn;
pub mod vms;
pub mod woken;
