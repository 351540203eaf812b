//! Time: the TSC, and what its ticks mean in time and in ticks of the local APIC's timer.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::apic;
use crate::cpu::{self, port};

/// Frequency of the 8254's clock, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// The window of the calibration, in ticks of the 8254: 10 ms.
const WINDOW: u64 = 11_931;
/// How often to look for the window's end before giving up.
const PATIENCE: u32 = 50_000_000;

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
/// Ticks of the local APIC's timer a TSC tick, times 2³².
static TIMER_RATIO: AtomicU64 = AtomicU64::new(0);

/// Measures TSC and APIC timer against channel 2 of the 8254 in one window. `false` if that has no clock.
pub(crate) fn calibrate() -> bool {
    // SAFETY: port 0x61 has the channel's gate (bit 0), the speaker (bit 1) and the channel's output (bit 5); 0x43
    // and 0x42 program the channel. None of them makes a device touch memory.
    let over = unsafe {
        port::write(0x61, port::read(0x61) & !3);
        port::write(0x43, 0xb0); // channel 2, both bytes, mode 0: the output rises at the end
        port::write(0x42, WINDOW as u8);
        port::write(0x42, (WINDOW >> 8) as u8);
        port::write(0x61, port::read(0x61) & !2 | 1);
        || port::read(0x61) & 0x20 != 0
    };
    apic::count_down();
    let start = cpu::tsc();
    let ended = (0..PATIENCE).any(|_| over());
    let tsc = cpu::tsc() - start;
    let timer = u64::from(apic::counted());
    let khz = |ticks: u64| ticks * PIT_HZ / (WINDOW * 1000);
    TSC_KHZ.store(khz(tsc).max(1), Ordering::Relaxed);
    TIMER_RATIO.store((timer << 32) / tsc.max(1), Ordering::Relaxed);
    ended
}

/// Begins the time that the log tells.
pub(crate) fn start() {
    BOOT_TSC.store(cpu::tsc(), Ordering::Relaxed);
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
pub fn micros() -> u64 {
    let ticks = u128::from(cpu::tsc().wrapping_sub(boot_tsc()));
    match tsc_khz() {
        0 => 0,
        khz => (ticks * 1000 / u128::from(khz)) as u64,
    }
}

/// Ticks of the APIC timer in so many TSC ticks, at least 1, at most what its counter holds.
pub(crate) fn timer_ticks(tsc: u64) -> u32 {
    let ticks = (u128::from(tsc) * u128::from(TIMER_RATIO.load(Ordering::Relaxed))) >> 32;
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

/// Waits. For the start of CPUs only.
pub(crate) fn delay(micros: u64) {
    let end = cpu::tsc() + micros * tsc_khz() / 1000;
    while cpu::tsc() < end {
        cpu::pause();
    }
}
