//! The I/O APIC: the lines of ISA devices. The two 8259s that came before it are masked.

use crate::prelude::*;

/// The timer's line 0 is wired to input 2; it is the only one that differs (ACPI's usual override, and QEMU's).
const INPUT_OF_LINE_0: u8 = 2;

const VERSION: u8 = 1;
const REDIRECTION: u8 = 0x10;
const MASKED: u32 = 1 << 16;

/// Selects a register and gives the address of its value. Only the boot CPU comes here, at boot.
fn select(register: u8) -> *mut u32 {
    // SAFETY: the I/O APIC is mapped there, uncached.
    unsafe { (IO_APIC as *mut u32).write_volatile(register.into()) };
    (IO_APIC + 0x10) as *mut u32
}

fn write(register: u8, value: u32) {
    // SAFETY: as in `select`. It sends interrupts to CPUs of this kernel only, with vectors above the exceptions'.
    unsafe { select(register).write_volatile(value) }
}

/// Masks every input, and the 8259s.
pub(crate) fn init() {
    // SAFETY: these are the mask registers of the 8259s, which make no device touch memory; then as in `select`.
    let version = unsafe {
        u8::write_to_port(0x21, 0xff);
        u8::write_to_port(0xa1, 0xff);
        select(VERSION).read_volatile()
    };
    let last = (version >> 16 & 0xff) as u8;
    (0..=last.min(119)).for_each(|input| write(REDIRECTION + 2 * input, MASKED));
}

/// Lets an ISA line interrupt the boot CPU with vector `LINE_0` + `line`, at its rising edge.
pub fn enable_line(line: u8) {
    let input = if line == 0 { INPUT_OF_LINE_0 } else { line % 16 };
    write(REDIRECTION + 2 * input + 1, apic::id(CpuId(0)).unwrap_or(0) << 24);
    write(REDIRECTION + 2 * input, u32::from(vector::LINE_0 + line % 16));
}
