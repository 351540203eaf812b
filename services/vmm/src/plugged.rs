//! Memory that a guest gets and gives up while it runs, block by block: where it may lie, and which of it is plugged.
//!
//! What isn't plugged is no memory: it reads as ones like any address without a device. memory promises a block when it is
//! plugged, so that a guest which was told of it can use it.

use core::ops::Range;

use caisson_proto::addr::PAGE_SIZE;

use crate::pages::Pages;
use crate::ram::CHUNK;

/// Bytes of a block.
pub const BLOCK: u64 = CHUNK;
/// The region begins at a multiple of this many bytes: Linux adds memory in such pieces.
pub const ALIGN: u64 = 128 << 20;

/// The region and its blocks.
#[derive(Debug)]
pub struct Plugged {
    region: Range<u64>,
    blocks: Pages,
    /// Pages that were promised when their block was plugged and were never backed since.
    owed: Pages,
}

/// The blocks that these bytes touch, counted from the region's first; `None` if they aren't all in it.
fn touched(region: &Range<u64>, gpa: u64, bytes: u64) -> Option<Range<u64>> {
    let start = gpa.checked_sub(region.start)?;
    let end = start.checked_add(bytes)?;
    (end <= region.end - region.start).then(|| start / BLOCK..end.div_ceil(BLOCK))
}

impl Plugged {
    /// A region of so many bytes, whole blocks, that begins at the first multiple of [`ALIGN`] from `above` on.
    pub fn new(above: u64, bytes: u64) -> Self {
        let start = above.next_multiple_of(ALIGN);
        let bytes = bytes & !(BLOCK - 1);
        let region = start..start.saturating_add(bytes);
        Self { region, blocks: Pages::new(bytes / BLOCK), owed: Pages::new(bytes / PAGE_SIZE) }
    }

    /// Where it lies.
    pub fn region(&self) -> Range<u64> {
        self.region.clone()
    }

    /// Whether the block of this address is plugged.
    #[inline]
    pub fn has(&self, gpa: u64) -> bool {
        gpa >= self.region.start && self.blocks.has((gpa - self.region.start) / BLOCK)
    }

    /// Of the blocks that these bytes touch, how many are plugged, and how many there are. `None` if the bytes aren't all in the
    /// region.
    pub fn count(&self, gpa: u64, bytes: u64) -> Option<(u64, u64)> {
        let blocks = touched(&self.region, gpa, bytes)?;
        let count = blocks.end - blocks.start;
        Some((self.blocks.count(blocks.start, count), count))
    }

    /// Whether all of these bytes lie in plugged blocks.
    pub fn all(&self, gpa: u64, bytes: u64) -> bool {
        self.count(gpa, bytes).is_some_and(|(plugged, blocks)| plugged == blocks)
    }

    /// Blocks are plugged, and their pages are owed; or they aren't plugged any more. How many pages were still owed.
    pub(crate) fn set(&mut self, gpa: u64, bytes: u64, to: bool) -> u64 {
        let Some(blocks) = touched(&self.region, gpa, bytes) else { return 0 };
        let (first, count) = (blocks.start * (BLOCK / PAGE_SIZE), (blocks.end - blocks.start) * (BLOCK / PAGE_SIZE));
        let owed = self.owed.count(first, count);
        self.blocks.set(blocks.start, blocks.end - blocks.start, to);
        self.owed.set(first, count, to);
        owed
    }

    /// Pages are backed.
    pub(crate) fn backed(&mut self, page: u64, count: u64) {
        if let Some(first) = page.checked_sub(self.region.start / PAGE_SIZE) {
            self.owed.set(first, count, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plugged_is_memory_as_a_whole() {
        let mut plugged = Plugged::new((4 << 30) + 1, 8 * BLOCK);
        let start = (4 << 30) + ALIGN;
        assert_eq!(plugged.region(), start..start + 8 * BLOCK);
        assert!(!plugged.has(start) && plugged.count(start, BLOCK) == Some((0, 1)));
        assert_eq!(plugged.set(start + BLOCK, 2 * BLOCK, true), 0);
        assert!(!plugged.has(start + BLOCK - 1) && plugged.has(start + BLOCK) && plugged.has(start + 3 * BLOCK - 1));
        assert!(plugged.all(start + BLOCK, 2 * BLOCK) && !plugged.all(start + BLOCK, 2 * BLOCK + 1));
        assert!(plugged.all(start + 2 * BLOCK - 1, 2) && !plugged.all(start + BLOCK - 1, 2));
        assert_eq!(plugged.count(start, 8 * BLOCK), Some((2, 8)));
        for (gpa, bytes) in [(start - 1, 2), (start, 8 * BLOCK + 1), (u64::MAX, 1), (start, u64::MAX), (0, 1)] {
            assert_eq!(plugged.count(gpa, bytes), None, "{gpa:x} {bytes:x}");
        }
    }

    #[test]
    fn what_was_backed_once_is_owed_no_more() {
        let mut plugged = Plugged::new(4 << 30, 4 * BLOCK);
        let start = plugged.region().start;
        plugged.set(start, 2 * BLOCK, true);
        plugged.backed(start / PAGE_SIZE + 3, 2);
        // Below and past the region there is nothing.
        plugged.backed(0, 512);
        plugged.backed(start / PAGE_SIZE + 4 * 512, 512);
        assert_eq!(plugged.set(start, BLOCK, false), 510);
        assert_eq!(plugged.set(start, BLOCK, false), 0);
        assert_eq!(plugged.set(start + BLOCK, BLOCK, false), 512);
        assert_eq!(Plugged::new(0, 0).count(0, 0), Some((0, 0)));
    }
}
