//! I/O ports, for services to which the manifest gives some. Any other port faults the service.

use core::arch::asm;

/// Reads a byte.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: touches no memory. A port that isn't this service's is a fault that the kernel catches.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as for `inb`; the devices behind these ports can't reach memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}
