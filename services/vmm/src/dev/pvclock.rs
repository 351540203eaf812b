//! kvmclock: pages by which a guest computes the time from its TSC without an exit
//! (Linux's Documentation/virt/kvm/x86/msr.rst).

/// Length of a vCPU's time record in bytes.
pub const TIME_BYTES: usize = 32;
/// Length of the wall-clock record in bytes.
pub const WALL_BYTES: usize = 12;
/// The TSCs of all vCPUs agree.
const STABLE: u8 = 1;

/// Nanoseconds from TSC ticks: `(ticks << shift) * multiplier >> 32`, a negative shift to the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The multiplier.
    pub multiplier: u32,
    /// The shift.
    pub shift: i8,
}

impl Scale {
    /// For a TSC of `khz` ticks a millisecond.
    pub fn new(khz: u64) -> Self {
        let hz = u128::from(khz.max(1)) * 1000;
        let mut shift = 0_i8;
        // multiplier = 10^9 · 2^32 / (hz · 2^shift), brought into 2^31 ≤ multiplier < 2^32.
        let mut scaled = (1_000_000_000_u128 << 64) / hz;
        while scaled >= 1 << 64 {
            scaled >>= 1;
            shift += 1;
        }
        while scaled < 1 << 63 {
            scaled <<= 1;
            shift -= 1;
        }
        Self { multiplier: (scaled >> 32) as u32, shift }
    }

    /// Nanoseconds of `ticks`, as a guest computes them.
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let shifted = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift };
        ((u128::from(shifted) * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// The record of a vCPU: at guest TSC `tsc` the system time was 0.
pub fn time_record(scale: Scale, tsc: u64, version: u32) -> [u8; TIME_BYTES] {
    let mut record = [0; TIME_BYTES];
    record[0..4].copy_from_slice(&version.to_le_bytes());
    record[8..16].copy_from_slice(&tsc.to_le_bytes());
    record[24..28].copy_from_slice(&scale.multiplier.to_le_bytes());
    record[28] = scale.shift as u8;
    record[29] = STABLE;
    record
}

/// The wall-clock record: the time when system time was 0, in seconds since 1970.
pub fn wall_record(epoch: u64, version: u32) -> [u8; WALL_BYTES] {
    let mut record = [0; WALL_BYTES];
    record[0..4].copy_from_slice(&version.to_le_bytes());
    record[4..8].copy_from_slice(&(epoch as u32).to_le_bytes());
    record
}
