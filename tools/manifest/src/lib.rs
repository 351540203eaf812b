//! What a machine is built from: a board's manifest (`system.toml`) and the files that describe VMs.
//!
//! Authority in Caisson is what the manifest says and nothing else. This crate reads it ([`system`]), checks it
//! ([`check`]), lays services and rings out as the kernel's records ([`plan`]), turns linked programs into images
//! ([`image`]) and writes the [`bundle`] that the machine boots with. [`share`] are pages that services share for good.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod check;
pub mod image;
mod network;
pub mod parse;
pub mod plan;
pub mod share;
pub mod system;
pub mod vm;

pub use parse::{Error, Size};
