//! The secure processor's mailbox where a service stands in for the processor: its registers lie in memory, at the
//! offsets of `caisson_proto::mailbox`.

use caisson_core::rmp::Rmp;
use caisson_proto::mailbox::REGISTERS;

use crate::prelude::*;

pub(crate) static MAILBOX: Once<Mailbox> = Once::new();

/// The RMP, if there is one.
pub(crate) fn rmp() -> Option<Rmp> {
    MAILBOX.get().map(|mailbox| mailbox.rmp.0).filter(|rmp| !rmp.0.is_empty())
}

/// Boot: these kernel frames are registers, two commands and data, and mapped in the service that stands in. Without
/// memory for an RMP there is none.
pub fn settle(registers: Frame, early: &mut Early) {
    let first = Frame(registers.0 + 1);
    let table = early.take_frames(early.count.div_ceil(PAGE_SIZE / 16));
    let entries = if table.is_some() { early.count as usize } else { 0 };
    let table = table.unwrap_or(first);
    // SAFETY: the kernel's own frames, mapped for good, which are only ever accessed as atomics or by `kmap::copy`.
    let (registers, command, rmp) = unsafe {
        let command = [first, Frame(first.0 + 1)].map(|frame| &*kmap::ptr(frame).cast());
        let registers = REGISTERS.map(|offset| &*kmap::ptr(registers).add(offset).cast::<AtomicU32>());
        (registers, command, core::slice::from_raw_parts(kmap::ptr(table).cast(), entries))
    };
    MAILBOX.call_once(|| Mailbox { registers, command, first, rmp: (Rmp(rmp), table) });
}
