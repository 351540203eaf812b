//! The secure processor's mailbox where a service stands in for the processor: its registers lie in memory, at the
//! offsets of `caisson_proto::mailbox`.

use caisson_proto::mailbox::REGISTERS;

use crate::prelude::*;

pub(crate) static MAILBOX: Once<Mailbox> = Once::new();

/// Boot: these kernel frames are registers, command and data, and mapped in the service that stands in.
pub fn settle(registers: Frame) {
    let first = Frame(registers.0 + 1);
    // SAFETY: the kernel's own frames, mapped for good, which are only ever accessed as atomics or by `user::copy`.
    let (registers, command) = unsafe {
        (REGISTERS.map(|offset| &*kmap::ptr(registers).add(offset).cast::<AtomicU32>()), &*kmap::ptr(first).cast())
    };
    MAILBOX.call_once(|| Mailbox { registers, command, first });
}
