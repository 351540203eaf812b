//! Frames before the kernel's frame table has them: taken from the largest piece of usable RAM, never given back.

use crate::prelude::*;

/// Frames below 1 MiB aren't given to anybody: firmware tables and the trampoline of other CPUs lie there.
pub const LOW_END: u64 = 0x10_0000 / PAGE_SIZE;

/// The allocator: the next frame, and one past the last.
pub struct Frames {
    first: u64,
    next: u64,
    end: u64,
}

/// The frames that a range touches, as first and end.
pub fn touched(range: &Range) -> (u64, u64) {
    (range.start.0 / PAGE_SIZE, (range.start.0 + range.bytes).div_ceil(PAGE_SIZE))
}

impl Frames {
    /// Chooses the largest piece of memory outside the low megabyte, the kernel and the bundle.
    pub fn new(boot: &BootInfo) -> Self {
        let taken = [(0, LOW_END), touched(&boot.kernel), touched(&boot.bundle)];
        // From where a range begins, or behind what is taken in it, to where it ends or the next is taken.
        let pieces = boot.memory.iter().map(touched).flat_map(|(start, end)| {
            taken.into_iter().chain([(0, start)]).map(move |(_, to)| to.max(start)).map(move |first| {
                let next = taken.iter().filter(|(_, to)| *to > first).map(|(from, _)| *from);
                (first, next.fold(end, u64::min))
            })
        });
        let (first, end) = pieces.max_by_key(|(from, to)| to.saturating_sub(*from)).unwrap_or((0, 0));
        Self { first, next: first, end }
    }

    /// Frames in a row.
    pub fn take(&mut self, count: u64) -> Option<Frame> {
        let end = self.next.checked_add(count).filter(|end| *end <= self.end)?;
        Some(Frame(core::mem::replace(&mut self.next, end)))
    }

    /// What was taken, as first and end.
    pub fn taken(&self) -> (u64, u64) {
        (self.first, self.next)
    }
}

#[cfg(test)]
mod tests {
    use caisson_proto::addr::Spa;
    use proptest::prelude::*;

    use super::*;
    use crate::boot::Quirks;

    extern crate std;

    fn boot(memory: &[(u64, u64)], kernel: (u64, u64), bundle: (u64, u64)) -> BootInfo {
        let range = |(start, bytes): (u64, u64)| Range { start: Spa(start), bytes };
        BootInfo {
            memory: memory.iter().copied().map(range).collect(),
            kernel: range(kernel),
            bundle: range(bundle),
            cpus: heapless::Vec::new(),
            local_apic: Spa(0),
            timer_khz: 0,
            io_apic: Spa(0),
            log_port: 0,
            power_off: None,
            sev_asids: 0,
            quirks: Quirks::default(),
        }
    }

    #[test]
    fn the_largest_piece_is_used() {
        let boot = boot(&[(0, 0x9_f000), (0x10_0000, 0x1f00_0000)], (0x20_0000, 0x2_1001), (0x100_0000, 5));
        let mut frames = Frames::new(&boot);
        assert_eq!(frames.take(0x101), Some(Frame(0x1001)));
        assert_eq!(frames.take(1), Some(Frame(0x1102)));
        assert_eq!(frames.taken(), (0x1001, 0x1103));
        assert_eq!(frames.take(u64::MAX), None);
    }

    #[test]
    fn nothing_is_left_of_a_range_that_the_bundle_covers() {
        let mut frames = Frames::new(&boot(&[(0x20_0000, 0x1000)], (0, 0), (0x1f_f000, 0x3000)));
        assert_eq!(frames.take(1), None);
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
                    let ram = memory.iter().any(|(start, length)| inside(frame, (start >> 12, length >> 12)));
                    prop_assert!(ram && frame >= LOW_END && !inside(frame, kernel) && !inside(frame, bundle));
                }
            }
        }
    }
}
