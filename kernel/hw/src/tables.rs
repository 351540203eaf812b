//! Page tables, in the format that a service's space and a VM's nested tables share (APM volume 2, section 5.3).
//!
//! Tables are kernel frames, so they are reached through [`kmap`]. Nothing here flushes a TLB.

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_core::machine::TablePool;
use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, LARGE_PAGES};

use crate::kmap;

bitflags::bitflags! {
    /// Bits of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Bits: u64 {
        /// The entry counts.
        const PRESENT = 1 << 0;
        /// Writes are allowed.
        const WRITE = 1 << 1;
        /// Ring 3 may use it. A nested walk counts as ring 3.
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
    }
}

/// The frame in an entry.
pub const fn frame_of(entry: u64) -> Frame {
    Frame((entry & 0x000f_ffff_ffff_f000) >> 12)
}

/// An entry.
pub const fn entry(frame: Frame, bits: Bits) -> u64 {
    frame.0 << 12 | bits.bits()
}

/// What an entry that points to a table has.
const TABLE: Bits = Bits::PRESENT.union(Bits::WRITE).union(Bits::USER);

/// A mapping that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The page where it was.
    pub page: u64,
    /// Its first frame.
    pub frame: Frame,
    /// 1, or 512 for a large page.
    pub pages: u64,
}

/// A tree of tables. Its root is a mapped kernel frame, and so is every table below it.
#[derive(Debug)]
pub struct Tables {
    root: Frame,
    levels: u32,
}

fn index(page: u64, level: u32) -> usize {
    (page >> (9 * (level - 1)) & 511) as usize
}

impl Tables {
    /// The tree at `root`: with 3 levels a PDPT that spans 512 GiB, with 4 a PML4.
    pub const fn new(root: Frame, levels: u32) -> Self {
        Self { root, levels }
    }

    /// The root.
    pub const fn root(&self) -> Frame {
        self.root
    }

    /// The slot for `page` in the table of level `target`. Makes the tables on the way if there is a pool.
    pub(crate) fn slot(
        &self,
        page: u64,
        target: u32,
        mut pool: Option<&mut dyn TablePool>,
    ) -> Result<Option<&'static AtomicU64>, Status> {
        let mut table = self.root;
        for level in (target + 1..=self.levels).rev() {
            let slot = kmap::word(table, index(page, level));
            let mut value = slot.load(Ordering::Relaxed);
            if value == 0 {
                let Some(pool) = pool.as_deref_mut() else { return Ok(None) };
                value = entry(pool.take().ok_or(Status::Exhausted)?, TABLE);
                slot.store(value, Ordering::Release);
            }
            if value & Bits::LARGE.bits() != 0 {
                return Err(Status::State);
            }
            table = frame_of(value);
        }
        Ok(Some(kmap::word(table, index(page, target))))
    }

    /// The entry that maps `page`, and how many pages it maps.
    pub fn lookup(&self, page: u64) -> Option<(u64, u64)> {
        let mut table = self.root;
        for level in (1..=self.levels).rev() {
            let value = kmap::word(table, index(page, level)).load(Ordering::Relaxed);
            if value == 0 {
                return None;
            }
            if level == 1 || value & Bits::LARGE.bits() != 0 {
                return Some((value, 1 << (9 * (level - 1))));
            }
            table = frame_of(value);
        }
        None
    }

    /// Maps `pages` pages from `page` on to the frames from `frame` on. 512 pages become a large page if both are
    /// aligned and no table is there yet.
    ///
    /// # Errors
    /// [`Status::State`] if something is mapped there, [`Status::Exhausted`] if the pool has no table. Nothing is
    /// mapped then; tables that were made stay, empty.
    pub fn map(
        &self,
        page: u64,
        frame: Frame,
        pages: u64,
        bits: Bits,
        pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let bits = bits | Bits::PRESENT;
        if pages == LARGE_PAGES && (page | frame.0).is_multiple_of(LARGE_PAGES) {
            let slot = self.slot(page, 2, Some(pool))?;
            let Some(slot) = slot.filter(|slot| slot.load(Ordering::Relaxed) == 0) else {
                return self.map_small(page, frame, pages, bits, pool);
            };
            slot.store(entry(frame, bits | Bits::LARGE), Ordering::Release);
            return Ok(());
        }
        self.map_small(page, frame, pages, bits, pool)
    }

    fn map_small(
        &self,
        page: u64,
        frame: Frame,
        pages: u64,
        bits: Bits,
        pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        for at in page..page + pages {
            match self.slot(at, 1, Some(pool))? {
                Some(slot) if slot.load(Ordering::Relaxed) == 0 => {}
                _ => return Err(Status::State),
            }
        }
        for number in 0..pages {
            if let Ok(Some(slot)) = self.slot(page + number, 1, None) {
                slot.store(entry(Frame(frame.0 + number), bits), Ordering::Release);
            }
        }
        Ok(())
    }

    /// Removes the first mapping in `from..end`. A large page that reaches out of it is split first.
    ///
    /// # Errors
    /// [`Status::Exhausted`] if a large page must be split and the pool has no table; nothing is removed.
    pub fn unmap_first(
        &self,
        from: u64,
        end: u64,
        pool: &mut dyn TablePool,
    ) -> Result<Option<Removed>, Status> {
        let mut page = from;
        while page < end {
            let (mut table, mut level) = (self.root, self.levels);
            loop {
                let slot = kmap::word(table, index(page, level));
                let value = slot.load(Ordering::Relaxed);
                let span = 1 << (9 * (level - 1));
                let first = page & !(span - 1);
                if value == 0 {
                    page = first + span;
                    break;
                }
                let large = value & Bits::LARGE.bits() != 0;
                if large && (first < from || first + span > end) {
                    table = pool.take().ok_or(Status::Exhausted)?;
                    for number in 0..LARGE_PAGES {
                        let small = (value & !Bits::LARGE.bits()) + (number << 12);
                        kmap::word(table, number as usize).store(small, Ordering::Relaxed);
                    }
                    slot.store(entry(table, TABLE), Ordering::Release);
                } else if large || level == 1 {
                    slot.store(0, Ordering::Release);
                    return Ok(Some(Removed { page: first, frame: frame_of(value), pages: span }));
                } else {
                    table = frame_of(value);
                }
                level -= 1;
            }
        }
        Ok(None)
    }

    /// Gives back every table below the root's entries `first..end`, and forgets what they map.
    pub fn drop_below(&self, first: usize, end: usize, pool: &mut dyn TablePool) {
        drop_below(self.root, self.levels, first, end, pool);
    }
}

fn drop_below(table: Frame, level: u32, first: usize, end: usize, pool: &mut dyn TablePool) {
    for at in first..end.min(512) {
        let value = kmap::word(table, at).swap(0, Ordering::AcqRel);
        if value != 0 && level > 1 && value & Bits::LARGE.bits() == 0 {
            drop_below(frame_of(value), level - 1, 0, 512, pool);
            pool.give_back(frame_of(value));
        }
    }
}
