//! The secure processor that QEMU and the simulated machine lack.
//!
//! A pure state machine behind the real one's mailbox: [`Mailbox`] is its registers, [`Processor`] executes what is rung, and
//! [`Board`] is all that it touches. It keeps its own account of guests, ASIDs and flushes, so that a driver whose account is
//! wrong gets the status that hardware gives. Nothing of a driver is used here.
//!
//! Rules come from 55766 (SEV API) and 56860 (SNP firmware ABI). A rule that could not be checked against them is marked
//! unverified; the book's page on the secure processor lists what was checked against what.
//!
//! No heap, no clock, no input or output. Secrets are as secret as the image that they are in.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod access;
mod activation;
pub mod asids;
pub mod board;
pub mod buffer;
pub mod certificate;
pub mod command;
pub mod config;
pub mod crypto;
pub mod guests;
pub mod identity;
mod keys;
mod launch;
pub mod mailbox;
pub mod platform;
mod processor;
pub mod rmp;
mod secret;
pub mod session;
pub mod snp;
pub mod station;
pub mod status;
mod storage;

pub use board::{Asid, Board, Cpu, Fault, MemoryKey};
pub use command::Command;
pub use config::Config;
pub use mailbox::{Mailbox, Register, Ring};
pub use processor::Processor;
pub use status::Status;
