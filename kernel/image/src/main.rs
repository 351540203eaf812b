//! Caisson's kernel: builds its tables from the board's [`BootInfo`](caisson_core::boot::BootInfo) and the bundle,
//! starts the supervisor, and from then on reacts.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod guests;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod silicon;
#[cfg(target_os = "none")]
mod spaces;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod statics;
#[cfg(target_os = "none")]
mod translations;

/// On the host there is nothing to boot.
#[cfg(not(target_os = "none"))]
fn main() {}
