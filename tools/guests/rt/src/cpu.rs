//! Instructions.

use core::arch::asm;

/// Reads a port.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: a guest of tests has no device that reaches memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as for `inb`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes a model-specific register.
///
/// # Safety
/// It exists, and nothing that Rust relies on changes by it.
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// It exists.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as the caller says.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Sleeps for good; interrupts are taken.
pub fn halt() -> ! {
    loop {
        // SAFETY: handlers keep what they change.
        unsafe { asm!("sti", "hlt", options(nostack)) }
    }
}
