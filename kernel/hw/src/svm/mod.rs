//! AMD's virtualisation: the world switch, and what lies in a vCPU's frames (APM volume 2, chapter 15).
//!
//! The rules are in `caisson_core::svm`; here are the instructions. The order on a CPU:
//!
//! 1. [`Cpu::init`] once, after the CPU's own segments and system-call registers are set: the world switch restores
//!    what they are then.
//! 2. [`Vcpu::switch_in`] if another vCPU was here last (and [`Vcpu::switch_out`] for that one before).
//! 3. [`Vcpu::enter`] until it returns [`Left::Exit`]; after [`Left::Interrupt`] the interrupt must be taken first.
//! 4. [`Vcpu::exit`] for the message to the vmm; [`Vcpu::resume`] with its reply.
//!
//! Interrupts are off all the time; the guest is left for them all the same.

mod cpu;
mod fpu;
mod instructions;
pub mod npt;
mod resident;
mod vcpu;
mod world;

pub use cpu::{Cpu, Features, Unsupported, supported};
pub use vcpu::Vcpu;
pub use world::Left;

use caisson_proto::addr::Frame;

use crate::kmap;

/// Frames of the I/O permission map that all vCPUs share (APM volume 2, section 15.10.1).
pub const IOPM_FRAMES: u64 = 3;

/// Fills the I/O permission map, [`IOPM_FRAMES`] mapped frames from `first` on, so that every port is intercepted.
/// `false` if they aren't mapped.
pub fn fill_iopm(first: Frame) -> bool {
    (first.0..first.0 + IOPM_FRAMES).all(|frame| kmap::write(Frame(frame), 0, &[0xff; 4096]))
}
