//! The local APIC: timer, interrupts between CPUs, acknowledgement (APM volume 2, chapter 16).
//!
//! Its registers lie at one address on every CPU, each seeing its own.

use crate::prelude::*;

const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER_ENTRY: u64 = 0x320;
/// Performance counters, LINT0, LINT1 and errors.
const OTHER_ENTRIES: [u64; 4] = [0x340, 0x350, 0x360, 0x370];
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const MASKED: u32 = 1 << 16;
const ENABLED: u32 = 1 << 8;
/// The timer counts every tick.
const DIVIDE_BY_1: u32 = 0b1011;
/// In the command register: not yet accepted.
const PENDING: u32 = 1 << 12;
/// Message types of the command register, with "assert".
pub(crate) const INIT: u32 = 0x4500;
pub(crate) const STARTUP: u32 = 0x4600;
const FIXED: u32 = 0x4000;
/// Ids from here on mean all CPUs, or don't fit the command register.
pub(crate) const BROADCAST: u32 = 0xff;

fn read(register: u64) -> u32 {
    // SAFETY: the local APIC is mapped there, uncached, on every CPU.
    unsafe { ((LOCAL_APIC + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: as in `read`. What this module writes makes no device touch memory.
    unsafe { ((LOCAL_APIC + register) as *mut u32).write_volatile(value) }
}

/// The local APIC id of a CPU; `None` if there is no such CPU.
pub(crate) fn id(cpu: CpuId) -> Option<u32> {
    boot::BOARD.get()?.cpus.get(usize::from(cpu.0)).copied()
}

/// Enables this CPU's APIC: nothing but the timer, other CPUs and the I/O APIC may interrupt.
pub(crate) fn enable() {
    write(SPURIOUS, ENABLED | u32::from(vector::SPURIOUS));
    OTHER_ENTRIES.iter().for_each(|entry| write(*entry, MASKED));
    write(TASK_PRIORITY, 0);
    write(DIVIDE, DIVIDE_BY_1);
    count_down(false);
}

/// The interrupt was taken.
pub(crate) fn acknowledge() {
    write(END_OF_INTERRUPT, 0);
}

/// Lets the timer count down from its highest count, for the calibration, or stops it again. It doesn't interrupt.
pub(crate) fn count_down(on: bool) {
    write(TIMER_ENTRY, if on { MASKED } else { vector::TIMER.into() });
    write(INITIAL_COUNT, if on { u32::MAX } else { 0 });
}

/// Ticks since [`count_down`].
pub(crate) fn counted() -> u32 {
    u32::MAX - read(CURRENT_COUNT)
}

/// Makes this CPU's timer interrupt at a time on the TSC, or never ([`NEVER`]), and forgets what was set before. It
/// may come early when that is far away (the counter has 32 bits): set it again then. Touches the device only if the
/// time differs.
pub(crate) fn set_timer(deadline: u64) {
    if this().timer.replace(deadline) != deadline {
        let ticks = || clock::timer_ticks(deadline.saturating_sub(cpu::tsc()));
        write(INITIAL_COUNT, if deadline == NEVER { 0 } else { ticks() });
    }
}

pub(crate) fn command(id: u32, low: u32) {
    while read(COMMAND_LOW) & PENDING != 0 {
        core::hint::spin_loop();
    }
    write(COMMAND_HIGH, id << 24);
    write(COMMAND_LOW, low);
}

/// Interrupts another CPU, or this one. Nothing happens if there is no such CPU.
pub(crate) fn send(cpu: CpuId, vector: u8) {
    if let Some(id) = id(cpu) {
        command(id, FIXED | u32::from(vector));
    }
}
