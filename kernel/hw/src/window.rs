//! This CPU's window: one page through which frames are zeroed that are mapped nowhere.

use crate::prelude::*;

const SLOT: *mut u64 = (OWN_TABLE + (WINDOW - PERCPU) / PAGE_SIZE * 8) as *mut u64;

/// Zeroes frames. They are host-owned and no Rust reference to them exists.
pub(crate) fn zero(first: Frame, pages: u64) {
    for frame in (first.0..first.0 + pages).map(Frame) {
        // SAFETY: the slot is this CPU's own and maps the window for nobody but this function, which runs with
        // interrupts off and doesn't nest; the frames are nobody's that Rust knows of.
        unsafe {
            SLOT.write_volatile(npt::entry(frame, DATA));
            asm!("rep stosq", inout("rdi") WINDOW => _, inout("rcx") PAGE_SIZE / 8 => _, in("rax") 0,
                options(nostack, preserves_flags));
            SLOT.write_volatile(0);
        }
        tlb::flush(VirtAddr::new_truncate(WINDOW));
    }
}
