//! Which slots there are, and which ranges change.
//!
//! Slots are 64 pages long and 64 pages apart, from the beginning of a region of 64 GiB on. Half of the region has none,
//! however many there are.

use std::ops::Range;

/// Numbers of slots that are measured.
pub const SLOTS: [u64; 4] = [1, 32, 1024, 32_764];
/// Numbers of vCPUs that are measured.
pub const VCPUS: [usize; 4] = [1, 8, 128, 1024];
/// Pages of the region.
pub const REGION: u64 = 1 << 24;
/// Pages of a slot.
pub const LENGTH: u64 = 64;
/// From one slot's beginning to the next's.
pub const STRIDE: u64 = 128;
/// Events of one turn.
pub const EVENTS: usize = 2048;

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
                let from = REGION / 2 + next(REGION / 2 - 8);
                from..from + 1 + next(8)
            }
            Self::Beside => {
                let from = next(slots) * STRIDE + LENGTH + next(LENGTH - 8);
                from..from + 1 + next(8)
            }
            Self::Real => {
                let page = next(slots) * STRIDE + next(LENGTH);
                page..page + 1
            }
        };
        (0..EVENTS).map(|_| range()).collect()
    }
}
