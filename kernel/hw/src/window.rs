//! This CPU's window: one page through which frames are reached that are mapped nowhere: zeroed or copied while they
//! are the host's, and flushed.

use core::arch::x86_64::_mm_clflush;

use x86_64::registers::model_specific::Msr;

use crate::prelude::*;

/// Takes a page's address in the host, and an ASID in bits 11:0 (APM volume 2, section 15.34.9).
const VM_PAGE_FLUSH: u32 = 0xc001_011e;
/// Bytes of a cache line at the least: more flushes than lines do no harm.
const LINE: usize = 64;

const SLOT: *mut u64 = (OWN_TABLE + (WINDOW - PERCPU) / PAGE_SIZE * 8) as *mut u64;

/// Lends a frame's bytes. They are no Rust object: only instructions that the compiler doesn't see into touch them.
pub(crate) fn with<R>(frame: Frame, act: impl FnOnce(*mut u8) -> R) -> R {
    // SAFETY: the slot is this CPU's own and maps the window for nobody but this function, which runs with
    // interrupts off and doesn't nest.
    unsafe { SLOT.write_volatile(npt::entry(frame, DATA)) };
    let result = act(WINDOW as *mut u8);
    // SAFETY: as above.
    unsafe { SLOT.write_volatile(0) };
    tlb::flush(VirtAddr::new_truncate(WINDOW));
    result
}

/// Zeroes frames that are host-owned.
pub(crate) fn zero(first: Frame, pages: u64) {
    for frame in (first.0..first.0 + pages).map(Frame) {
        // SAFETY: one frame is mapped at the address, and it is nobody's that Rust knows of.
        with(frame, |at| unsafe {
            asm!("rep stosq", inout("rdi") at => _, inout("rcx") PAGE_SIZE / 8 => _, in("rax") 0,
                options(nostack, preserves_flags));
        });
    }
}

/// Flushes every line of frames, under whichever key, from all caches (CLFLUSH, APM volume 2, section 7.6.5; with
/// VM_PAGE_FLUSH, section 15.34.9, for a guest's lines where CPUID 8000_001F EAX\[10\] isn't set).
pub(crate) fn flush_lines(first: Frame, pages: u64, asid: u32) {
    let by_msr = asid != 0 && cpuid(0x8000_001f, 0).eax >> 2 & 1 == 1 && cpuid(0x8000_001f, 0).eax >> 10 & 1 == 0;
    for frame in (first.0..first.0 + pages).map(Frame) {
        // SAFETY: flushing changes no memory; the MSR exists and takes the page's address and the ASID.
        with(frame, |at| unsafe {
            match by_msr {
                true => Msr::new(VM_PAGE_FLUSH).write(at as u64 | u64::from(asid)),
                false => (0..PAGE_SIZE).step_by(LINE).for_each(|offset| _mm_clflush(at.add(offset as usize))),
            }
        });
    }
}
