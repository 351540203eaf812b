//! The kernel as a whole.

mod death;
mod fake;
mod ipc;
mod ops;
mod schedule;
mod system;
mod vcpus;
