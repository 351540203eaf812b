//! Statistics in KVM's binary format: from bytes to names and values ([`read()`]), whether Linux's own test would accept them
//! ([`judge()`]), and from the console's lines to the blocks ([`lines`]).
//!
//! Nothing here trusts a number in the bytes before it was compared with how many bytes there are.
#![forbid(unsafe_code)]

pub mod judge;
pub mod lines;
pub mod read;

pub use judge::judge;
pub use read::{Block, Statistic, read};
