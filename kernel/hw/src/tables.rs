//! Entries of page tables (APM volume 2, section 5.3), and the frames where the tables lie.
//!
//! The rules of trees are in `caisson_core::svm::npt`, for nested tables and for services' spaces alike.

use crate::prelude::*;

bitflags::bitflags! {
    /// Bits of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Bits: u64 {
        /// The entry counts.
        const PRESENT = 1 << 0;
        /// Writes are allowed.
        const WRITE = 1 << 1;
        /// Ring 3 may use it.
        const USER = 1 << 2;
        /// Write-through.
        const PWT = 1 << 3;
        /// Not cached.
        const PCD = 1 << 4;
        /// It was used.
        const ACCESSED = 1 << 5;
        /// It was written.
        const DIRTY = 1 << 6;
        /// A large page (not in the lowest level).
        const LARGE = 1 << 7;
        /// Survives a CR3 load.
        const GLOBAL = 1 << 8;
        /// No instruction fetches.
        const NX = 1 << 63;
        /// A table of the kernel's.
        const TABLE = 0b11;
        /// Data that is read and written.
        const DATA = 0b110_0011 | 1 << 63;
    }
}

/// The frame in an entry.
pub(crate) const fn frame_of(entry: u64) -> Frame {
    Frame((entry & 0x000f_ffff_ffff_f000) >> 12)
}

/// An entry.
pub(crate) const fn entry(frame: Frame, bits: Bits) -> u64 {
    frame.0 << 12 | bits.bits()
}

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
