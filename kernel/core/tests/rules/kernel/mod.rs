//! The kernel as a whole.

mod asids;
mod death;
mod fake;
mod firmware;
mod ipc;
mod ops;
mod schedule;
mod snp;
mod snp_mailbox;
mod system;
mod vcpus;
