//! The machine's time-stamp counter.

use caisson_proto::addr::Tsc;

use crate::info;

/// The counter now.
pub fn now() -> Tsc {
    // SAFETY: RDTSC has no effect beyond its result, and the kernel lets services execute it.
    Tsc(unsafe { core::arch::x86_64::_rdtsc() })
}

/// `milliseconds` in ticks.
pub fn ticks(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(info().head.tsc_khz)
}

/// Microseconds since boot.
pub fn micros() -> u64 {
    let ticks = now().0.saturating_sub(info().head.boot_tsc);
    let khz = info().head.tsc_khz.max(1);
    ticks / khz * 1000 + ticks % khz * 1000 / khz
}
