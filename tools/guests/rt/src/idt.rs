//! Interrupt handlers (APM volume 2, section 8.2). Which of their registers handlers must keep is between them and who
//! is interrupted.

use core::arch::asm;
use core::cell::UnsafeCell;

/// Present, an interrupt gate of ring 0.
const GATE: u64 = 0x8e00 << 32;
/// The entry code's code segment.
const CODE: u64 = 8 << 16;

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: a guest has one CPU that sets handlers, with interrupts off.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; 256]));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Makes `handler` the handler of a vector and loads the table.
///
/// # Safety
/// It is code that ends with IRETQ and takes the error code off the stack, if there is one.
pub unsafe fn set(vector: u8, handler: unsafe extern "C" fn()) {
    let at = handler as *const () as u64;
    let gate = [at & 0xffff | CODE | GATE | at >> 16 << 48, at >> 32];
    let pointer = Pointer { limit: 4095, base: TABLE.0.get() as u64 };
    // SAFETY: one CPU, interrupts off. The table lives for ever.
    unsafe {
        (*TABLE.0.get())[usize::from(vector)] = gate;
        asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags));
    }
}
