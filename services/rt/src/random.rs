//! The CPU's random numbers.

use core::arch::asm;
use core::arch::x86_64::__cpuid;

/// How often RDRAND may find nothing before it counts as broken: the vendors say ten.
const TRIES: usize = 10;

/// A random number by RDRAND. `None` if the CPU has no such instruction, or it gives nothing.
pub fn rdrand() -> Option<u64> {
    if __cpuid(1).ecx >> 30 & 1 == 0 {
        return None;
    }
    (0..TRIES).find_map(|_| {
        let (value, given): (u64, u8);
        // SAFETY: the instruction exists, and it touches no memory.
        unsafe { asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) given, options(nomem, nostack)) };
        (given == 1).then_some(value)
    })
}
