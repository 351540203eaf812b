//! A guest that measures what its exits cost: prints `exits NAME LEAST MEDIAN`, in ticks of the TSC, for each kind.
//! With `repeat=NAME` on its command line it causes that kind of exit for ever instead.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod measure;

#[cfg(not(target_os = "none"))]
fn main() {}
