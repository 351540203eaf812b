//! What a service stands on: system calls, the server loop, rings, windows onto shared memory, and the log.
//!
//! A service's binary has a `build.rs` that passes `-Tservice.x` to the linker, is built for
//! `x86_64-unknown-none` with `-C relocation-model=static`, and names its start with [`entry!`]; the start sets up
//! a [`Server`] and gives it to [`serve`]. All the unsafe code of the services is in this crate, so that they
//! themselves forbid it.
//!
//! On the host only [`ring`] exists: the algorithm, over any memory, for tests and loom.
#![cfg_attr(target_os = "none", no_std)]

pub mod ring;

#[cfg(target_os = "none")]
mod entry;
#[cfg(all(target_os = "none", feature = "heap"))]
mod heap;
#[cfg(target_os = "none")]
pub mod info;
#[cfg(target_os = "none")]
mod log;
#[cfg(target_os = "none")]
pub mod mailbox;
#[cfg(all(target_os = "none", not(feature = "heap")))]
mod no_heap;
#[cfg(target_os = "none")]
pub mod port;
#[cfg(target_os = "none")]
pub mod random;
#[cfg(target_os = "none")]
pub mod rings;
#[cfg(target_os = "none")]
mod server;
#[cfg(target_os = "none")]
pub mod share;
#[cfg(target_os = "none")]
mod sys;
#[cfg(target_os = "none")]
pub mod time;
#[cfg(target_os = "none")]
pub mod window;

#[cfg(target_os = "none")]
pub use info::{file, info, name_of, slot_of};
#[cfg(target_os = "none")]
pub use log::set_log_sink;
#[cfg(target_os = "none")]
pub use server::{Server, answer, serve};
#[cfg(target_os = "none")]
pub use sys::{
    Delivered, LeasePage, call, call_borrow, call_lend, call_raw, exit, kernel, kernel_borrow, kernel_lend,
    kernel_relend, kernel_words, known_id, null, reply_wait, ring_doorbell,
};

pub use caisson_proto as proto;
