//! The board without a machine: the kernel's rules and the services' libraries under a seeded scheduler.
//!
//! [`sim::run`] simulates what a seed stands for. The kernel is the real `caisson-core`, and so are memory, notifier,
//! sev-firmware and the supervisor, and the emulated secure processor behind its mailbox; vmms and guests are models
//! that do at random what real ones may, and what they may not. Every CPU and every service runs in a coroutine of its
//! own; CPUs are interleaved wherever the kernel asks something of the machine. `check` has the rules that must hold
//! between two steps, and at the end.
//!
//! The same seed gives the same history. A failure tells what happened before, and the command that replays it.
#![forbid(unsafe_code)]

mod bits;
mod cache;
pub mod campaign;
mod check;
pub mod config;
mod cpu;
mod cpus;
mod guest;
mod hardware;
mod history;
mod hunt;
mod known;
mod lines;
mod manifest;
mod mutate;
mod owners;
mod pages;
mod place;
mod programs;
mod rng;
mod seen;
mod service;
mod silicon;
pub mod sim;
mod stacks;
mod sweep;
mod view;
mod world;

pub use config::{Config, Mutant};
pub use sim::{Failure, Report, run};
