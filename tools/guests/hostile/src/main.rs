//! A guest that does everything that it should not, in real, protected and long mode, and counts what it gets: ports,
//! MSRs, holes, odd instructions, faults in faults, wild tables, storms of interrupts, code that changes itself.
//!
//! On its command line: `seed=N`, `parts=A,B` (else all), `show=PART` for every single attempt of a part,
//! `machine=bare` where it may not touch the real devices of a PC, `go=key` to wait for a key, `end=NAME` for how it is
//! to end.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod apic;
#[cfg(target_os = "none")]
mod attempt;
#[cfg(target_os = "none")]
mod delivery;
#[cfg(target_os = "none")]
mod endings;
#[cfg(target_os = "none")]
mod instructions;
#[cfg(target_os = "none")]
mod life;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod modes;
#[cfg(target_os = "none")]
mod modified;
#[cfg(target_os = "none")]
mod msrs;
#[cfg(target_os = "none")]
mod ports;
#[cfg(target_os = "none")]
mod raw;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod storms;
#[cfg(target_os = "none")]
mod streams;
#[cfg(target_os = "none")]
mod stubs;
#[cfg(target_os = "none")]
mod tables;

#[cfg(not(target_os = "none"))]
fn main() {}
