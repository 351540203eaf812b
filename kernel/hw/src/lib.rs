//! The machine under Caisson's kernel: all of ring 0's assembly and unsafe code, behind safe functions.
//!
//! **Boot.** The board calls the image's main function with a `BootInfo`; [`init`] moves the boot CPU into the
//! kernel's own tables and returns [`Early`], which gives zeroed frames (it is a `TablePool` too) until
//! [`Early::finish`] tells which frames are the kernel's and which are nobody's. [`start_cpus`] starts the others.
//! Each CPU calls [`install`] with the image's [`Kernel`] before it enters ring 3 or takes an interrupt.
//!
//! **Running.** Interrupts are off in the kernel but in [`cpu::idle`] and [`cpu::poll_interrupts`]. Each CPU has one
//! kernel stack. A system call stores the registers in this CPU's `UserFrame` and calls [`Kernel::syscall`]; what the
//! frame says on return is entered. [`enter_user`] enters a frame from anywhere and forgets the stack. Before either,
//! [`space::Space::load`] and [`load_ports`] say whose frame it is.
//!
//! **Memory.** The kernel sees its own frames through [`kmap`] and no other; [`window`] reaches a frame for the
//! length of one function; [`user`] copies from and to the service that is loaded.
//!
//! **Time and CPUs.** [`clock`], [`apic`] (timer, interrupts between CPUs), [`ioapic`] (ISA lines), [`this_cpu`],
//! [`local`], [`running`].
//!
//! **End.** [`log::epitaph`] sends the log straight to the board's device, [`power_off`] ends the machine.
#![no_std]

pub mod apic;
mod boot;
pub mod clock;
pub mod cpu;
pub mod ioapic;
pub mod kmap;
pub mod layout;
pub mod log;
mod percpu;
mod power;
mod segments;
mod smp;
pub mod space;
pub mod svm;
mod syscall;
mod tables;
mod traps;
pub mod user;
pub mod window;

pub use boot::{Early, InitError, Settled, init};
pub use caisson_core::early::FrameRange;
pub use percpu::{cpu as this_cpu, local};
pub use power::power_off;
pub use segments::load_ports;
pub use smp::{Absent, running, start_cpus};
pub use syscall::enter_user;
pub use traps::{Kernel, Trap, install, vector};
