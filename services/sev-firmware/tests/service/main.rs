//! sev-firmware on a kernel that keeps its own rules, and behind it the emulated secure processor, which keeps its own
//! account: whoever does things in the wrong order is told so by one of the two, with the status of hardware.

mod asids;
mod hostile;
mod kernel;
mod launch;
mod mailbox;
mod platform;
/// The processor's own test machine: memory, RMP, CPUs.
#[path = "../../../../board/qemu/psp/tests/common/mod.rs"]
mod psp;
mod random;
mod regions;
mod restart;
mod snp;
mod world;
