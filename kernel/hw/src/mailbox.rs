//! The secure processor's mailbox where a service stands in for the processor: its registers lie in memory (55766,
//! chapter 4; offsets in `caisson_proto::mailbox`).

use crate::prelude::*;

static FIRST: Once<Frame> = Once::new();

/// Boot: these kernel frames are registers, command and data, and mapped in the service that stands in.
pub fn settle(first: Frame) {
    FIRST.call_once(|| first);
}

pub(crate) fn first() -> Option<Frame> {
    FIRST.get().copied()
}

/// A word of the frame after so many.
fn word(frame: u64, index: usize) -> Option<&'static AtomicU64> {
    Some(kmap::word(Frame(first()?.0 + frame), index))
}

pub(crate) fn command_word(index: usize, write: Option<u64>) -> u64 {
    let Some(word) = word(1, index) else { return 0 };
    if let Some(value) = write {
        word.store(value, Ordering::Relaxed);
    }
    word.load(Ordering::Relaxed)
}

/// Writes the address registers, then the command's, whose response bit is clear.
pub(crate) fn ring(command: u16) {
    if let Some((first, (registers, high))) = first().zip(word(0, 0).zip(word(0, 1))) {
        let buffer = Frame(first.0 + 1).spa().0;
        high.store(buffer >> 32, Ordering::Relaxed);
        registers.store(buffer << 32 | u64::from(command) << 16, Ordering::Release);
    }
}

/// The command register.
pub(crate) fn answer() -> u32 {
    word(0, 0).map_or(0, |registers| registers.load(Ordering::Acquire) as u32)
}
