//! Frames before the kernel's frame table has them: taken from usable RAM in rising order, never given back.

use caisson_core::boot::{BootInfo, Range};
use caisson_proto::addr::{Frame, PAGE_SIZE};
use heapless::Vec;

/// Frames in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRange {
    /// The first.
    pub first: Frame,
    /// How many.
    pub count: u64,
}

/// Ranges at the most: those of the board, and two more for each that is cut out.
pub const MAX_RANGES: usize = 40;

/// Frames below 1 MiB aren't given to anybody: firmware tables and the trampoline of other CPUs lie there.
pub(crate) const LOW_END: u64 = 0x10_0000 / PAGE_SIZE;

/// The allocator.
#[derive(Debug)]
pub(crate) struct Frames {
    /// What could be used at the beginning, and how much of it is taken.
    ranges: Vec<(FrameRange, u64), MAX_RANGES>,
}

/// The frames that a range touches, as first and end.
pub(crate) fn touched(range: &Range) -> (u64, u64) {
    (range.start.0 / PAGE_SIZE, (range.start.0 + range.bytes).div_ceil(PAGE_SIZE))
}

impl Frames {
    /// All usable RAM but the low megabyte, image and bundle. What doesn't fit the table of ranges is left out.
    pub(crate) fn new(boot: &BootInfo) -> Self {
        let mut ranges = Vec::new();
        let mut taken = [touched(&boot.kernel), touched(&boot.bundle)];
        taken.sort_unstable();
        for range in &boot.memory {
            let (mut at, end) = (range.start.0 / PAGE_SIZE, (range.start.0 + range.bytes) / PAGE_SIZE);
            at = at.max(LOW_END);
            for (from, to) in taken.into_iter().chain([(end, end)]) {
                let stop = from.clamp(at, end.max(at));
                if stop > at {
                    let _ = ranges.push((FrameRange { first: Frame(at), count: stop - at }, 0));
                }
                at = at.max(to);
            }
        }
        Self { ranges }
    }

    /// Frames in a row that nobody had before.
    pub(crate) fn take(&mut self, count: u64) -> Option<Frame> {
        let (range, used) = self.ranges.iter_mut().find(|(range, used)| range.count - used >= count)?;
        let first = Frame(range.first.0 + *used);
        *used += count;
        Some(first)
    }

    /// What was taken so far.
    pub(crate) fn taken(&self) -> impl Iterator<Item = FrameRange> + '_ {
        self.ranges.iter().map(|(range, used)| FrameRange { first: range.first, count: *used })
    }

    /// What is left.
    pub(crate) fn rest(&self) -> impl Iterator<Item = FrameRange> + '_ {
        self.ranges
            .iter()
            .filter(|(range, used)| *used < range.count)
            .map(|(range, used)| FrameRange { first: Frame(range.first.0 + used), count: range.count - used })
    }
}
