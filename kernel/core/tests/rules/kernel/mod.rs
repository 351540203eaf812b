//! The kernel as a whole.

mod asids;
mod death;
mod events;
mod fake;
mod firmware;
mod ipc;
mod look;
mod ops;
mod schedule;
mod snp;
mod snp_large;
mod snp_mailbox;
mod system;
mod vcpus;
