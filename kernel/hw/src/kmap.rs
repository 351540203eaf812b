//! The kernel's view of memory: its own frames, and no other.
//!
//! Frame f appears at `FRAMES_MAP + f * 4096` between `map` and `unmap`. The tables of that region exist for
//! all RAM since boot, so neither can fail for want of memory. There is no other map of physical memory.
//!
//! Tables lie in such frames, too: the rules of trees are in [`npt`], for nested tables, services' spaces and the
//! kernel's half alike; here is what the kernel's own pages are mapped with (APM volume 2, section 5.3).

use crate::prelude::*;

/// Frame numbers are below this. Set once, at boot.
static FRAMES: AtomicU64 = AtomicU64::new(0);

pub(crate) fn init(frames: u64) {
    FRAMES.store(frames, Ordering::Release);
}

fn pte(frame: Frame) -> Option<&'static AtomicU64> {
    if frame.0 >= FRAMES.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: boot mapped an entry here for each frame below `FRAMES`, for good.
    Some(unsafe { &*((FRAME_PTES as *const AtomicU64).wrapping_add(frame.0 as usize)) })
}

/// Makes a frame visible to the kernel. The frame table says that it is the kernel's.
pub(crate) fn map(frame: Frame) {
    map_as(frame, DATA);
}

pub(crate) fn map_as(frame: Frame, bits: u64) {
    if let Some(pte) = pte(frame) {
        pte.store(npt::entry(frame, bits), Ordering::Release);
    }
}

/// Hides a frame from the kernel on this CPU. Another CPU that used it may hold the translation until
/// [`cpu::flush_tlb`] ran there: the frame must not turn private before.
pub(crate) fn unmap(frame: Frame) {
    if let Some(pte) = pte(frame) {
        pte.store(0, Ordering::Release);
        tlb::flush(VirtAddr::new_truncate(ptr(frame) as u64));
    }
}

/// Whether the kernel sees a frame; on the board's tables, before `init`, it sees all.
pub(crate) fn is_mapped(frame: Frame) -> bool {
    FRAMES.load(Ordering::Relaxed) == 0 || pte(frame).is_some_and(|pte| pte.load(Ordering::Acquire) != 0)
}

/// Where a frame is, if it is mapped.
pub(crate) const fn ptr(frame: Frame) -> *mut u8 {
    (FRAMES_MAP + frame.0 * PAGE_SIZE) as *mut u8
}

/// The frame that is mapped at an address.
pub(crate) const fn frame_at(address: u64) -> Frame {
    Frame((address - FRAMES_MAP) / PAGE_SIZE)
}

/// A word of a frame of the kernel's own structures.
pub(crate) fn word(frame: Frame, index: usize) -> &'static AtomicU64 {
    debug_assert!(is_mapped(frame));
    // SAFETY: callers pass frames of the kernel's own structures, which stay mapped while they are; what is shared
    // is only ever accessed as atomics.
    unsafe { &*(ptr(frame) as *const AtomicU64).wrapping_add(index & 511) }
}

/// Zeroes a mapped frame.
pub(crate) fn zero(frame: Frame) {
    if is_mapped(frame) {
        (0..512).for_each(|index| word(frame, index).store(0, Ordering::Relaxed));
    }
}

/// Copies bytes into a mapped frame, if they fit.
pub fn write(frame: Frame, offset: usize, from: &[u8]) {
    if offset.checked_add(from.len()).is_some_and(|end| end <= PAGE_SIZE as usize) && is_mapped(frame) {
        // SAFETY: the range lies in one mapped frame; Rust has no reference to what lies there but atomics.
        unsafe { copy(ptr(frame).wrapping_add(offset), from.as_ptr(), from.len()) }
    }
}

/// Copies bytes that others may change meanwhile, by an instruction that the compiler doesn't see into.
///
/// # Safety
/// So many bytes at `from` can be read, and at `to` they are for this to write.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") bytes => _,
            options(nostack, preserves_flags));
    }
}

/// The kernel reads and executes. Survives a CR3 load.
pub(crate) const CODE: u64 = npt::PRESENT | npt::ACCESSED | 1 << 8;
/// The kernel reads.
pub(crate) const READ: u64 = CODE | npt::NO_EXECUTE;
/// The kernel reads and writes.
pub(crate) const DATA: u64 = READ | npt::WRITE | npt::DIRTY;
/// Registers of a device: not cached.
pub(crate) const DEVICE: u64 = DATA | 1 << 3 | 1 << 4;

/// Tables in kernel frames.
pub(crate) struct Mapped;

impl Tables for Mapped {
    fn read(&self, table: Frame, index: usize) -> u64 {
        kmap::word(table, index).load(Ordering::Relaxed)
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        kmap::word(table, index).store(entry, Ordering::Release);
    }
}
