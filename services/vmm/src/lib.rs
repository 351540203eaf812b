//! The device models of one VM: what an unmodified Linux kernel needs to boot to a shell, and to do it fast.
//!
//! [`Vmm`] is a state machine. A vCPU's exit goes in, the reply that resumes it comes out; everything else that it
//! does to the world goes through [`Platform`]. It is never run twice at once, so it takes no lock.
//!
//! An exit is dear, so the guest is offered what Linux uses by itself to have fewer: kvmclock and the TSC instead
//! of timers to read, the TSC-deadline timer, x2APIC registers instead of memory ones, interrupts that end without
//! an exit, one hypercall for an IPI to many, a serial port with a long FIFO, and ACPI's hardware-reduced model
//! instead of the legacy chips. Those exist all the same, for guests that want them.
//!
//! Nothing that a guest does may panic here: indexing is checked, arithmetic that can overflow is explicit.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod aside;
pub mod boot;
mod console;
mod control;
mod counts;
pub mod cpuid;
pub mod dev;
mod device_strings;
mod epitaph;
mod exceptions;
mod exits;
mod holes;
mod hypercall;
pub mod insn;
mod interrupts;
pub mod launch;
mod mmio;
mod msr;
mod msr_list;
pub mod need;
mod nmi;
mod pages;
pub mod platform;
pub mod plugged;
mod ports;
mod private;
pub mod ram;
mod startup;
mod strings;
mod vcpu;
pub mod virtio;
pub mod vmm;
pub mod waiting;

pub use aside::PAGES as ASIDE_PAGES;
pub use platform::{Event, Platform};
pub use vmm::{Facts, Vmm};
