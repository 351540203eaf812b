//! supervisor: starts, restarts and buries services. It calls none of them.
//!
//! A doorbell says that *some* service died; the supervisor then asks the kernel about every slot, so that no
//! death is lost if bells coalesce. A vmm is its VM: it is started anew only when its guest asked for a reset.
//! Any other service is restarted, up to a limit ([`limit`]), and beyond it the machine is ended.
//!
//! Memory's `SETTLED` may have been on its way before a VM died. So after each death it must come twice, with the
//! bell rung in between: the second can't be older than the first.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

pub mod burial;
pub mod limit;
mod machine;
mod supervise;

pub use machine::{Event, Machine, Setup};
pub use supervise::Supervisor;

#[cfg(test)]
mod tests;
