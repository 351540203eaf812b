//! AMD's virtualisation: the world switch, and what lies in a vCPU's frames (APM volume 2, chapter 15).
//!
//! The rules are in `caisson_core::svm`; here are the instructions. Interrupts are off all the time; the guest is left
//! for them all the same. What a vCPU doesn't exchange at every exit stays in the CPU until another one needs it:
//! [`vcpu::make_resident`].

pub(crate) mod features;
mod resident;
pub(crate) mod vcpu;
mod world;
