//! Frames before the kernel's frame table has them: taken from usable RAM in rising order, never given back.

use caisson_proto::addr::{Frame, PAGE_SIZE};
use heapless::Vec;

use crate::boot::{BootInfo, Range};

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
pub const LOW_END: u64 = 0x10_0000 / PAGE_SIZE;

/// The allocator.
#[derive(Debug)]
pub struct Frames {
    /// What could be used at the beginning, and how much of it is taken.
    ranges: Vec<(FrameRange, u64), MAX_RANGES>,
}

/// The frames that a range touches, as first and end.
pub fn touched(range: &Range) -> (u64, u64) {
    (range.start.0 / PAGE_SIZE, (range.start.0 + range.bytes).div_ceil(PAGE_SIZE))
}

impl Frames {
    /// All usable RAM but the low megabyte, image and bundle. What doesn't fit the table of ranges is left out.
    pub fn new(boot: &BootInfo) -> Self {
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
    pub fn take(&mut self, count: u64) -> Option<Frame> {
        let (range, used) = self.ranges.iter_mut().find(|(range, used)| range.count - used >= count)?;
        let first = Frame(range.first.0 + *used);
        *used += count;
        Some(first)
    }

    /// What was taken so far.
    pub fn taken(&self) -> impl Iterator<Item = FrameRange> + '_ {
        self.ranges.iter().map(|(range, used)| FrameRange { first: range.first, count: *used })
    }

    /// What is left.
    pub fn rest(&self) -> impl Iterator<Item = FrameRange> + '_ {
        self.ranges
            .iter()
            .filter(|(range, used)| *used < range.count)
            .map(|(range, used)| FrameRange { first: Frame(range.first.0 + used), count: range.count - used })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use caisson_proto::addr::Spa;
    use proptest::prelude::*;

    use super::*;
    use crate::boot::{PowerOff, Quirks};

    fn boot(memory: &[(u64, u64)], kernel: (u64, u64), bundle: (u64, u64)) -> BootInfo {
        let range = |(start, bytes): (u64, u64)| Range { start: Spa(start), bytes };
        BootInfo {
            memory: memory.iter().copied().map(range).collect(),
            kernel: range(kernel),
            bundle: range(bundle),
            cpus: Vec::new(),
            local_apic: Spa(0),
            io_apic: Spa(0),
            log_port: 0,
            power_off: PowerOff::Halt,
            quirks: Quirks::default(),
        }
    }

    fn rest(frames: &Frames) -> std::vec::Vec<(u64, u64)> {
        frames.rest().map(|range| (range.first.0, range.count)).collect()
    }

    #[test]
    fn image_bundle_and_low_memory_are_left_out() {
        let boot = boot(&[(0, 0x9_f000), (0x10_0000, 0x1f00_0000)], (0x20_0000, 0x2_1001), (0x100_0000, 5));
        let mut frames = Frames::new(&boot);
        assert_eq!(rest(&frames), [(0x100, 0x100), (0x222, 0xdde), (0x1001, 0x1e0ff)]);
        assert_eq!(frames.take(0x101), Some(Frame(0x222)));
        assert_eq!(frames.take(0x100), Some(Frame(0x100)));
        assert_eq!(frames.take(1), Some(Frame(0x323)));
        assert_eq!(rest(&frames), [(0x324, 0xcdc), (0x1001, 0x1e0ff)]);
        let taken: std::vec::Vec<_> = frames.taken().map(|range| (range.first.0, range.count)).collect();
        assert_eq!(taken, [(0x100, 0x100), (0x222, 0x102), (0x1001, 0)]);
    }

    #[test]
    fn nothing_is_left_of_a_range_that_the_bundle_covers() {
        let mut frames = Frames::new(&boot(&[(0x20_0000, 0x1000)], (0, 0), (0x1f_f000, 0x3000)));
        assert_eq!(frames.take(1), None);
        assert_eq!(rest(&frames), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_frame_is_usable_and_given_once(
            holes in proptest::collection::vec((1_u64..64, 1_u64..64), 1..8),
            kernel in (0x100_u64..0x200, 0_u64..64),
            bundle in (0x100_u64..0x400, 0_u64..64),
            sizes in proptest::collection::vec(1_u64..16, 0..64),
        ) {
            let mut at = 0xf0;
            let memory: std::vec::Vec<_> = holes.iter().map(|(hole, length)| {
                let start = at + hole;
                at = start + length;
                (start << 12, length << 12)
            }).collect();
            let bytes = |(start, pages): (u64, u64)| (start << 12, pages << 12);
            let mut frames = Frames::new(&boot(&memory, bytes(kernel), bytes(bundle)));
            let inside = |frame: u64, (start, pages): (u64, u64)| frame >= start && frame < start + pages;
            let mut seen = std::collections::BTreeSet::new();
            for size in sizes {
                let Some(first) = frames.take(size) else { continue };
                for frame in first.0..first.0 + size {
                    prop_assert!(seen.insert(frame));
                }
            }
            for range in frames.rest() {
                for frame in range.first.0..range.first.0 + range.count {
                    prop_assert!(seen.insert(frame));
                }
            }
            for frame in 0..at + 1 {
                let ram = memory.iter().any(|(start, length)| inside(frame, (start >> 12, length >> 12)));
                let free = ram && frame >= LOW_END && !inside(frame, kernel) && !inside(frame, bundle);
                prop_assert_eq!(seen.contains(&frame), free);
            }
        }
    }
}
