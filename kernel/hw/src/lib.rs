//! The machine under Caisson's kernel: all of ring 0's assembly and unsafe code, behind safe functions.
//!
//! **Boot.** The board calls the image's main function with a `BootInfo`; [`init`] moves the boot CPU into the
//! kernel's own tables and returns [`Early`], which gives zeroed frames (it is a `TablePool` too) until
//! [`Early::finish`] tells what every frame is. [`start_cpus`] starts the others; [`run::start`] the first service.
//!
//! **Running.** Interrupts are off in the kernel but in [`cpu::idle`] and between two entries of a guest. Each CPU has
//! one kernel stack. A system call stores the registers in this CPU's `UserFrame` and calls [`run`]; what the frame
//! says on return is entered.
//!
//! **Memory.** The kernel sees its own frames through [`kmap`] and no other, those that services have to themselves among
//! them; `window` reaches a frame for the length of one function.
//!
//! **End.** [`log::epitaph`] takes the log for what is said last, [`power_off`] ends the machine.
#![no_std]

mod apic;
mod boot;
pub mod clock;
pub mod cpu;
mod epitaph;
pub mod home;
pub mod ioapic;
pub mod kmap;
pub mod layout;
pub mod log;
mod machine;
pub mod mailbox;
mod percpu;
mod prelude;
pub mod run;
mod segments;
mod smp;
pub mod space;
mod svm;
mod syscall;
mod translations;
mod traps;
mod window;

pub use boot::{Early, Lacking, init};
pub use epitaph::{cannot_boot, power_off};
pub use machine::KERNEL;
pub use smp::start_cpus;
