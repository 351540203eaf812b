//! The machine under Caisson's kernel: all of ring 0's assembly and unsafe code, behind safe functions.
#![no_std]

pub mod apic;
mod boot;
pub mod clock;
pub mod cpu;
mod frames;
pub mod ioapic;
pub mod kmap;
pub mod layout;
pub mod log;
mod percpu;
mod power;
mod segments;
mod smp;
pub mod space;
mod syscall;
pub mod tables;
mod traps;
pub mod user;
pub mod window;

pub use boot::{Early, InitError, Settled, init};
pub use frames::FrameRange;
pub use percpu::{cpu as this_cpu, local};
pub use power::power_off;
pub use segments::load_ports;
pub use smp::{Absent, running, start_cpus};
pub use syscall::enter_user;
pub use traps::{Kernel, Trap, install, vector};
