//! The local APIC, by its page.

use crate::attempt::{Frame, INTERRUPTS, Mode, place};
use crate::raw::{get, put};

const BASE: u64 = 0xfee0_0000;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;
/// The timer's vector.
pub const ALARM: u32 = 0xf0;
/// Ticks until an alarm, some milliseconds.
const SOON: u32 = 10_000_000;

/// Reads a register.
pub fn read(register: u64) -> u32 {
    get(BASE + register)
}

/// Writes a register.
pub fn write(register: u64, value: u32) {
    put(BASE + register, value);
}

/// Switches it on, with everything masked.
pub fn prepare() {
    write(SPURIOUS, 0x1ff);
    for register in [TIMER, 0x350, 0x360, 0x370] {
        write(register, MASKED);
    }
    write(DIVIDE, 0xb);
}

/// An interrupt comes soon.
pub fn alarm() {
    write(TIMER, ALARM);
    write(INITIAL, SOON);
}

/// No interrupt comes, or it has come and is over.
pub fn no_alarm() {
    write(INITIAL, 0);
    write(TIMER, MASKED);
    settle();
}

/// Sleeps until the alarm.
pub fn rest() {
    place(&[0xf4]);
    let mut frame = Frame::new(Mode::Long);
    frame.rflags |= INTERRUPTS;
    alarm();
    frame.run(Mode::Long);
    no_alarm();
}

/// Takes and ends whatever interrupts are pending; how many.
pub fn settle() -> u64 {
    for count in 0..512 {
        write(END_OF_INTERRUPT, 0);
        // Two NOPs: the first is in no shadow.
        place(&[0x90, 0x90]);
        let mut frame = Frame::new(Mode::Long);
        frame.rflags |= INTERRUPTS;
        if frame.run(Mode::Long).vector == 3 {
            return count;
        }
    }
    512
}

/// Sends what the command says to where it says.
pub fn send(command: u32, destination: u8) {
    write(COMMAND_HIGH, u32::from(destination) << 24);
    write(COMMAND, command);
}

/// Waits about so many thousand ticks of the timer.
pub fn wait(thousands: u32) {
    write(TIMER, MASKED);
    write(INITIAL, u32::MAX);
    while u32::MAX - read(CURRENT) < thousands * 1000 {
        core::hint::spin_loop();
    }
    write(INITIAL, 0);
}
