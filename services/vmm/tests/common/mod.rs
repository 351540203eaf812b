//! A platform made of plain memory, and a small kernel image to boot on it: the fuzz targets have the same.
#![allow(unused_imports)] // each test file uses its part

pub use caisson_fuzz::guest::fake::Fake;
pub use caisson_fuzz::guest::machine::{CODE, FACTS, KHZ, MIB, Machine, PROTECTION, bzimage, config, interrupt};
