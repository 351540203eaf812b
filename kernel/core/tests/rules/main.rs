//! The kernel's rules on a machine that only remembers.
#![cfg(not(loom))]

mod death;
mod fake;
mod frames;
mod ipc;
mod ops;
mod schedule;
mod system;
mod vcpus;
