//! Time: the TSC, and what its ticks mean in time and in ticks of the local APIC's timer.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{apic, cpu, cpu::port};

/// Frequency of the 8254's clock, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// The least that the window of the calibration has, in ticks of the 8254: 8 ms. Its counter lasts for 55 ms.
const WINDOW: u16 = 9545;
/// Looks at the counter in a window at the most, and windows at the most.
const LOOKS: u32 = 1_000_000;
const TRIES: u32 = 5;
/// Readings of which the quickest counts: the host of a virtual machine may run something else in between.
const READINGS: u32 = 8;

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
/// Ticks of the local APIC's timer a TSC tick, times 2³².
static TIMER_RATIO: AtomicU64 = AtomicU64::new(0);

/// All three clocks, read at one moment.
struct Moment {
    /// TSC ticks that the reading took.
    took: u64,
    tsc: u64,
    timer: u32,
    /// What channel 2 of the 8254 has left.
    left: u16,
}

fn read_once() -> Moment {
    let before = cpu::tsc();
    // SAFETY: latches the counter of channel 2 and reads its two bytes; no device touches memory.
    let left = unsafe {
        port::write(0x43, 0x80);
        u16::from_le_bytes([port::read(0x42), port::read(0x42)])
    };
    let timer = apic::counted();
    let tsc = cpu::tsc();
    Moment { took: tsc - before, tsc, timer, left }
}

fn now() -> Moment {
    (1..READINGS).fold(read_once(), |best, _| {
        let next = read_once();
        if next.took < best.took { next } else { best }
    })
}

/// One window: its beginning and its end, unless the counter stands still or has run out.
fn window() -> Option<(Moment, Moment)> {
    // SAFETY: port 0x61 has the channel's gate (bit 0), the speaker (bit 1) and the channel's output (bit 5); 0x43
    // and 0x42 program the channel. None of them makes a device touch memory.
    unsafe {
        port::write(0x61, port::read(0x61) & !3);
        port::write(0x43, 0xb0); // channel 2, both bytes, mode 0: the output rises at the end
        port::write(0x42, 0xff);
        port::write(0x42, 0xff);
        port::write(0x61, port::read(0x61) & !2 | 1);
    }
    apic::count_down(true);
    let start = now();
    let over = (0..LOOKS).any(|_| start.left.wrapping_sub(read_once().left) >= WINDOW);
    let end = now();
    // SAFETY: as above; this only reads.
    let ran_out = unsafe { port::read(0x61) & 0x20 != 0 };
    apic::count_down(false);
    (over && !ran_out).then_some((start, end))
}

/// Measures TSC and APIC timer against channel 2 of the 8254. `false` if that doesn't count.
pub(crate) fn calibrate() -> bool {
    let Some((start, end)) = (0..TRIES).find_map(|_| window()) else { return false };
    let tsc = (end.tsc - start.tsc).max(1);
    let timer = u64::from(end.timer - start.timer);
    let ticks = u64::from(start.left - end.left).max(1);
    TSC_KHZ.store((tsc * PIT_HZ / (ticks * 1000)).max(1), Ordering::Relaxed);
    TIMER_RATIO.store((timer << 32) / tsc, Ordering::Relaxed);
    true
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
