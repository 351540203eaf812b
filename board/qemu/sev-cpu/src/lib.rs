//! What a CPU with SEV does and QEMU's doesn't, as rules: the instructions on the RMP beside RMPUPDATE, which is the kernel's
//! (`caisson_core::rmp`). Each is one actor's: PSMASH the host's, PVALIDATE and RMPADJUST a guest's.
//!
//! Sources: AMD64 Architecture Programmer's Manual, volume 3, of each instruction; volume 2, section 15.36. The order
//! of the checks where several apply is unverified, and what else is says so where it stands.
#![no_std]
#![forbid(unsafe_code)]

pub mod guest;
pub mod host;
pub mod vmpl;
