//! What a test guest stands on: it is entered by Multiboot, goes to long mode with 4 GiB mapped as they are, and talks
//! over the serial line. It boots bare and on any hypervisor that loads Multiboot images.
//!
//! A guest's binary has a `build.rs` that passes `-Tguest.x` to the linker, is built for `x86_64-unknown-none` with
//! `-C relocation-model=static`, and names its start with [`entry!`].
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod idt;
#[cfg(target_os = "none")]
pub mod serial;
#[cfg(target_os = "none")]
pub use boot::cmdline;
