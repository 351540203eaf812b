//! Which slots there are, and which ranges change.
//!
//! Slots are 128 pages long and 128 pages apart: half of them from the beginning of a region of 64 GiB on, the others before its
//! end. The middle of the region has none, however many there are: as in a machine, where other things lie
//! between what a VM has of memory.

use std::ops::Range;

/// Numbers of slots that are measured.
pub const SLOTS: [u64; 4] = [1, 32, 1024, 32_764];
/// Numbers of vCPUs that are measured.
pub const VCPUS: [usize; 4] = [1, 8, 128, 1024];
/// Pages of the region.
pub const REGION: u64 = 1 << 24;
/// Pages of a slot.
pub const LENGTH: u64 = 128;
/// From one slot's beginning to the next's.
pub const STRIDE: u64 = 256;
/// The middle of the region, without slots: it begins here and is as long as a quarter of the region.
pub const MIDDLE: u64 = REGION / 8 * 3;
/// Events of one turn.
pub const EVENTS: usize = 2048;

/// Where a slot begins, of so many.
pub const fn start(slot: u64, slots: u64) -> u64 {
    if slot < slots.div_ceil(2) { slot * STRIDE } else { REGION - (slots - slot) * STRIDE }
}

/// What the ranges are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No slot is near: most of what changes in a machine.
    Elsewhere,
    /// Between two slots.
    Beside,
    /// In a slot, where a page is mapped.
    Real,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Elsewhere, Self::Beside, Self::Real];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Elsewhere => "spurious, elsewhere",
            Self::Beside => "spurious, between slots",
            Self::Real => "real",
        }
    }

    /// Ranges of a machine with so many slots; the same in each run.
    pub fn ranges(self, slots: u64) -> Vec<Range<u64>> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: u64| {
            // xorshift64*: which slots come in which order isn't to be guessed by a CPU.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % below
        };
        let mut range = || match self {
            Self::Elsewhere => {
                let from = MIDDLE + next(REGION / 4 - 8);
                from..from + 1 + next(8)
            }
            Self::Beside => {
                let from = start(next(slots), slots) + LENGTH + next(LENGTH - 8);
                from..from + 1 + next(8)
            }
            Self::Real => {
                let page = start(next(slots), slots) + next(LENGTH);
                page..page + 1
            }
        };
        (0..EVENTS).map(|_| range()).collect()
    }
}
