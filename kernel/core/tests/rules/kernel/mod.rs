//! The kernel as a whole.

mod asids;
mod death;
mod fake;
mod firmware;
mod ipc;
mod ops;
mod schedule;
mod snp;
mod system;
mod vcpus;
