//! This CPU's window: one small and one large page through which frames are reached that are mapped nowhere else,
//! to zero, fill or flush them. A private frame may only be flushed.

use caisson_proto::addr::{Frame, LARGE_PAGES, PAGE_SIZE};

use crate::cpu;
use crate::layout::{OWN_DIRECTORY, OWN_TABLE, PERCPU, WINDOW_LARGE, WINDOW_SMALL};
use crate::tables::{Bits, entry};

const DATA: Bits = Bits::PRESENT.union(Bits::WRITE).union(Bits::ACCESSED).union(Bits::DIRTY).union(Bits::NX);
/// Bytes in a cache line (CPUID 1 EBX\[15:8\] is 8 on every CPU with long mode).
const LINE: usize = 64;

const SMALL_SLOT: *mut u64 = (OWN_TABLE + (WINDOW_SMALL - PERCPU) / PAGE_SIZE * 8) as *mut u64;
const LARGE_SLOT: *mut u64 = (OWN_DIRECTORY + 8) as *mut u64;

/// Calls `f` with every piece of `pages` frames from `first` on, as address and length in bytes.
fn each(first: Frame, pages: u64, mut f: impl FnMut(*mut u8, usize)) {
    let mut at = first.0;
    while at < first.0 + pages {
        let large = at.is_multiple_of(LARGE_PAGES) && first.0 + pages - at >= LARGE_PAGES;
        let (slot, address, count, bits) = match large {
            true => (LARGE_SLOT, WINDOW_LARGE, LARGE_PAGES, DATA | Bits::LARGE),
            false => (SMALL_SLOT, WINDOW_SMALL, 1, DATA),
        };
        // SAFETY: the slot is this CPU's own and maps `address` for nobody but this function, which runs with
        // interrupts off and doesn't nest.
        unsafe { slot.write_volatile(entry(Frame(at), bits)) };
        f(address as *mut u8, (count * PAGE_SIZE) as usize);
        // SAFETY: as above.
        unsafe { slot.write_volatile(0) };
        cpu::flush_page(address);
        at += count;
    }
}

/// Zeroes frames. They are host-owned and no Rust reference to them exists.
pub fn zero(first: Frame, pages: u64) {
    // SAFETY: the window maps these bytes; the frames are nobody's that Rust knows of.
    each(first, pages, |at, bytes| unsafe {
        core::arch::asm!("rep stosq", inout("rdi") at => _, inout("rcx") bytes / 8 => _, in("rax") 0,
            options(nostack, preserves_flags));
    });
}

/// Writes bytes at the beginning of a host-owned frame. What exceeds a page is left out.
pub fn write(frame: Frame, from: &[u8]) {
    let count = from.len().min(PAGE_SIZE as usize);
    // SAFETY: as in `zero`, for the first `count` bytes.
    each(frame, 1, |at, _| unsafe { cpu::copy(at, from.as_ptr(), count) });
}

/// Writes the dirty cache lines of frames back and drops them, on all CPUs (CLFLUSH, APM volume 3).
pub fn flush(first: Frame, pages: u64) {
    each(first, pages, |at, bytes| {
        for offset in (0..bytes).step_by(LINE) {
            // SAFETY: the window maps the line; CLFLUSH changes no contents.
            unsafe { core::arch::x86_64::_mm_clflush(at.add(offset)) };
        }
    });
    // SAFETY: orders the flushes before what follows.
    unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
}
