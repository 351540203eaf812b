//! How many cache flushes several policies need, on traces of encrypted VMs.
//!
//! [`trace`] makes the traces; [`linux`] has models of what Linux does; [`caisson`] plays them on the kernel and the services as
#![forbid(unsafe_code)]

pub mod bound;
pub mod caisson;
mod lines;
pub mod linux;
mod machine;
pub mod plot;
pub mod policy;
pub mod report;
pub mod run;
mod system;
pub mod trace;

#[cfg(test)]
mod tests;
