//! The rules of AMD's virtualisation (APM volume 2, chapter 15): what a VMCB holds, who answers an exit, what may be
//! loaded, what is injected again. `kernel/hw` executes the instructions.

pub mod cpuid;
pub mod events;
pub mod exits;
pub mod npt;
pub mod reset;
pub mod state;
pub mod vmcb;

#[cfg(test)]
mod tests;
