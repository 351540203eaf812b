//! Time: the TSC, and what its ticks mean in time and in ticks of the local APIC's timer.

use crate::prelude::*;

/// Milliseconds that the calibration takes.
const WINDOW_MS: u64 = 8;
/// Looks at the timer in it at the most.
const LOOKS: u32 = 10_000_000;
/// Readings of which the quickest counts: the host of a virtual machine may run something else in between.
const READINGS: u32 = 8;

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
/// Ticks of the local APIC's timer a TSC tick, times 2³².
static TIMER_RATIO: AtomicU64 = AtomicU64::new(0);

/// Both clocks, read at one moment; first the TSC ticks that the reading took.
fn now() -> (u64, u64, u64) {
    let read = |_| {
        let before = cpu::tsc();
        let timer = apic::counted();
        let tsc = cpu::tsc();
        (tsc - before, tsc, timer.into())
    };
    (1..READINGS).map(read).fold(read(0), |best, next| if next.0 < best.0 { next } else { best })
}

/// Measures the TSC against the local APIC's timer, whose frequency the board knows; the time that logs tell begins. `false`
/// if the timer doesn't count.
pub(crate) fn calibrate(timer_khz: u64) -> bool {
    apic::count_down(true);
    let (_, tsc, timer) = now();
    let over = (0..LOOKS).any(|_| u64::from(apic::counted()) - timer >= WINDOW_MS * timer_khz);
    let (_, end, timer_end) = now();
    apic::count_down(false);
    let khz = ((end - tsc) * timer_khz / (timer_end - timer).max(1)).max(1);
    BOOT_TSC.store(tsc, Ordering::Relaxed);
    TSC_KHZ.store(khz, Ordering::Relaxed);
    TIMER_RATIO.store((timer_khz << 32) / khz, Ordering::Relaxed);
    over
}

/// Ticks of the TSC in a millisecond.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// The TSC at boot.
pub fn boot_tsc() -> u64 {
    BOOT_TSC.load(Ordering::Relaxed)
}

/// Microseconds since boot; 0 before the calibration.
pub(crate) fn micros() -> u64 {
    let ticks = u128::from(cpu::tsc().wrapping_sub(boot_tsc()));
    (ticks * 1000).checked_div(tsc_khz().into()).unwrap_or(0) as u64
}

/// Ticks of the APIC timer in so many TSC ticks, at least 1, at most what its counter holds.
pub(crate) fn timer_ticks(tsc: u64) -> u32 {
    let ticks = (u128::from(tsc) * u128::from(TIMER_RATIO.load(Ordering::Relaxed))) >> 32;
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

/// Waits for so many microseconds at the most, until something is so. For the start of CPUs only.
pub(crate) fn wait(micros: u64, done: impl Fn() -> bool) {
    let end = cpu::tsc() + micros * tsc_khz() / 1000;
    while !done() && cpu::tsc() < end {
        core::hint::spin_loop();
    }
}
