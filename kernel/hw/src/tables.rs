//! What the kernel's own pages are mapped with (APM volume 2, section 5.3), and the frames where tables lie.
//!
//! The rules of trees are in [`npt`], for nested tables, services' spaces and the kernel's half alike.

use crate::prelude::*;

/// The kernel reads and executes. Survives a CR3 load.
pub(crate) const CODE: u64 = npt::PRESENT | npt::ACCESSED | 1 << 8;
/// The kernel reads.
pub(crate) const READ: u64 = CODE | npt::NO_EXECUTE;
/// The kernel reads and writes.
pub(crate) const DATA: u64 = READ | npt::WRITE | npt::DIRTY;
/// Registers of a device: not cached.
pub(crate) const DEVICE: u64 = DATA | 1 << 3 | 1 << 4;

/// Tables in kernel frames.
pub(crate) struct Mapped;

impl Tables for Mapped {
    fn read(&self, table: Frame, index: usize) -> u64 {
        kmap::word(table, index).load(Ordering::Relaxed)
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        kmap::word(table, index).store(entry, Ordering::Release);
    }
}
