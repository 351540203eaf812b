//! This CPU's window: one small and one large page through which frames are zeroed that are mapped nowhere.

use core::arch::asm;

use caisson_proto::addr::{Frame, LARGE_PAGES, PAGE_SIZE};

use crate::{
    cpu, layout::OWN_DIRECTORY, layout::OWN_TABLE, layout::PERCPU, layout::WINDOW_LARGE, layout::WINDOW_SMALL,
    tables::Bits, tables::entry,
};

const SMALL_SLOT: *mut u64 = (OWN_TABLE + (WINDOW_SMALL - PERCPU) / PAGE_SIZE * 8) as *mut u64;
const LARGE_SLOT: *mut u64 = (OWN_DIRECTORY + 8) as *mut u64;

/// Zeroes frames. They are host-owned and no Rust reference to them exists.
pub(crate) fn zero(first: Frame, pages: u64) {
    let (mut at, end) = (first.0, first.0 + pages);
    while at < end {
        let large = at.is_multiple_of(LARGE_PAGES) && end - at >= LARGE_PAGES;
        let (slot, address, count, bits) = match large {
            true => (LARGE_SLOT, WINDOW_LARGE, LARGE_PAGES, Bits::DATA | Bits::LARGE),
            false => (SMALL_SLOT, WINDOW_SMALL, 1, Bits::DATA),
        };
        // SAFETY: the slot is this CPU's own and maps `address` for nobody but this function, which runs with
        // interrupts off and doesn't nest; the frames are nobody's that Rust knows of.
        unsafe {
            slot.write_volatile(entry(Frame(at), bits));
            asm!("rep stosq", inout("rdi") address => _, inout("rcx") count * PAGE_SIZE / 8 => _, in("rax") 0,
                options(nostack, preserves_flags));
            slot.write_volatile(0);
        }
        cpu::flush_page(address);
        at += count;
    }
}
