//! The pure half of Caisson's kernel: every table and every rule, no instruction.
//!
//! Nothing here dereferences an address or executes a privileged instruction; what must happen to the machine is
//! asked of a [`machine::Machine`], which `kernel/hw` is on silicon and QEMU and `board/host` in simulation.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod context;
pub mod cpu;
