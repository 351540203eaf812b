//! How many cache flushes several policies need, on traces of encrypted VMs.
#![forbid(unsafe_code)]

pub mod trace;
