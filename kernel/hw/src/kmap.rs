//! The kernel's view of memory: its own frames, and no other.
//!
//! Frame f appears at `FRAMES_MAP + f * 4096` between [`map`] and [`unmap`]. The tables of that region exist for
//! all RAM since boot, so neither can fail for want of memory. There is no other map of physical memory.

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_proto::addr::{Frame, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::cpu;
use crate::layout::{FRAME_PTES, FRAMES_MAP};
use crate::tables::{Bits, entry};

/// Frame numbers are below this. Set once, at boot.
static FRAMES: AtomicU64 = AtomicU64::new(0);

const KERNEL_DATA: Bits =
    Bits::PRESENT.union(Bits::WRITE).union(Bits::ACCESSED).union(Bits::DIRTY).union(Bits::GLOBAL).union(Bits::NX);

pub(crate) fn init(frames: u64) {
    FRAMES.store(frames, Ordering::Release);
}

/// Frame numbers are below this.
pub fn frames() -> u64 {
    FRAMES.load(Ordering::Relaxed)
}

fn pte(frame: Frame) -> Option<&'static AtomicU64> {
    if frame.0 >= frames() {
        return None;
    }
    // SAFETY: boot mapped an entry here for each frame below `frames()`, for good.
    Some(unsafe { &*((FRAME_PTES as *const AtomicU64).wrapping_add(frame.0 as usize)) })
}

/// Makes a frame visible to the kernel. The frame table says that it is the kernel's.
/// `false` if there is no such frame.
pub fn map(frame: Frame) -> bool {
    map_as(frame, KERNEL_DATA)
}

pub(crate) fn map_read_only(frame: Frame) -> bool {
    map_as(frame, KERNEL_DATA.difference(Bits::WRITE))
}

fn map_as(frame: Frame, bits: Bits) -> bool {
    let Some(pte) = pte(frame) else { return false };
    pte.store(entry(frame, bits), Ordering::Release);
    true
}

/// Hides a frame from the kernel on this CPU. Another CPU that used it may hold the translation until
/// [`cpu::flush_tlb`] ran there: the frame must not turn private before.
pub fn unmap(frame: Frame) {
    if let Some(pte) = pte(frame) {
        pte.store(0, Ordering::Release);
        cpu::flush_page(ptr(frame) as u64);
    }
}

/// Whether the kernel sees a frame.
pub fn is_mapped(frame: Frame) -> bool {
    pte(frame).is_some_and(|pte| pte.load(Ordering::Acquire) != 0)
}

/// Where a frame is, if it is mapped.
pub const fn ptr(frame: Frame) -> *mut u8 {
    (FRAMES_MAP + frame.0 * PAGE_SIZE) as *mut u8
}

/// A word of a frame of the kernel's own structures.
pub(crate) fn word(frame: Frame, index: usize) -> &'static AtomicU64 {
    debug_assert!(is_mapped(frame));
    // SAFETY: callers pass frames that they made page tables of, which stay mapped while they are; entries are
    // only ever accessed as atomics.
    unsafe { &*(ptr(frame) as *const AtomicU64).wrapping_add(index & 511) }
}

/// A page as words that others may write too.
pub type Page = [AtomicU64; 512];

/// Calls `f` with a frame's contents, if it is mapped. The frame table must keep it mapped meanwhile.
pub fn with<R>(frame: Frame, f: impl FnOnce(&Page) -> R) -> Option<R> {
    // SAFETY: the frame is mapped, and it stays so while the frame table says that it is the kernel's, which only
    // its holder changes; what others share is accessed as atomics only.
    is_mapped(frame).then(|| f(unsafe { &*(ptr(frame) as *const Page) }))
}

/// Zeroes a mapped frame. `false` if it isn't mapped.
pub fn zero(frame: Frame) -> bool {
    with(frame, |page| page.iter().for_each(|word| word.store(0, Ordering::Relaxed))).is_some()
}

/// Copies bytes out of a mapped frame. `false` if it isn't mapped or the range leaves it.
pub fn read(frame: Frame, offset: usize, into: &mut [u8]) -> bool {
    let fits = offset.checked_add(into.len()).is_some_and(|end| end <= PAGE_SIZE as usize);
    if !fits || !is_mapped(frame) {
        return false;
    }
    // SAFETY: the range lies in one mapped frame, as in `with`; `into` is the caller's alone.
    unsafe { cpu::copy(into.as_mut_ptr(), ptr(frame).wrapping_add(offset), into.len()) };
    true
}

/// Copies bytes into a mapped frame. `false` if it isn't mapped or the range leaves it.
pub fn write(frame: Frame, offset: usize, from: &[u8]) -> bool {
    let fits = offset.checked_add(from.len()).is_some_and(|end| end <= PAGE_SIZE as usize);
    if !fits || !is_mapped(frame) {
        return false;
    }
    // SAFETY: as in `read`; Rust has no reference to what lies there but `Page`s, whose holders expect changes.
    unsafe { cpu::copy(ptr(frame).wrapping_add(offset), from.as_ptr(), from.len()) };
    true
}

/// A value out of a mapped frame.
pub fn get<T: FromBytes + IntoBytes>(frame: Frame, offset: usize) -> Option<T> {
    let mut value = T::new_zeroed();
    read(frame, offset, value.as_mut_bytes()).then_some(value)
}

/// Puts a value into a mapped frame. `false` as [`write`].
pub fn put<T: IntoBytes + Immutable>(frame: Frame, offset: usize, value: &T) -> bool {
    write(frame, offset, value.as_bytes())
}
