//! Caisson's kernel: builds its tables from the board's [`BootInfo`](caisson_core::boot::BootInfo) and the bundle,
//! starts the supervisor, and from then on reacts.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod start;

/// On the host there is nothing to boot.
#[cfg(not(target_os = "none"))]
fn main() {}
