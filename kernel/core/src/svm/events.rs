//! Events: what the exit broke off and must be injected again, and what a vmm may inject.
//! APM volume 2, sections 15.7.2 (EXITINTINFO) and 15.20 (EVENTINJ); both have one format.

use crate::prelude::*;

/// The event counts.
pub const VALID: u64 = 1 << 31;
/// An error code comes with it, in bits 63:32.
pub const ERROR_CODE: u64 = 1 << 11;
const TYPE_SHIFT: u32 = 8;
const TYPE: u64 = 7 << TYPE_SHIFT;
/// Bits that are zero.
const RESERVED: u64 = 0x7fff_f000;

/// Type of an interrupt.
pub const INTERRUPT: u64 = 0;
/// Type of an NMI.
pub const NMI: u64 = 2 << TYPE_SHIFT;
/// Type of an exception.
pub const EXCEPTION: u64 = 3 << TYPE_SHIFT;
/// Type of a software interrupt.
pub const SOFTWARE: u64 = 4 << TYPE_SHIFT;

/// Vectors with an error code (APM volume 2, table 8-1) for which every CPU and QEMU push it.
const ALWAYS_PUSHED: u32 = 1 << 8 | 0x1f << 10 | 1 << 17;
/// #BP and #OF: exceptions that an instruction asks for.
const ASKED_FOR: u32 = 1 << 3 | 1 << 4;

const fn has(set: u32, vector: u64) -> bool {
    vector < 32 && set >> vector & 1 == 1
}

/// The event to inject at the next entry because the exit broke off its delivery; 0 for none.
///
/// `injected` is what was injected at the last entry. What an instruction of the guest asked for isn't injected
/// again: the guest still stands at that instruction and executes it again. But what the vmm injected of that kind
/// has no instruction behind it.
///
/// `interrupts_by_virq`: see [`Quirks`].
pub const fn again(int_info: u64, injected: u64, interrupts_by_virq: bool) -> u64 {
    if int_info & VALID == 0 {
        return 0;
    }
    let (kind, vector) = (int_info & TYPE, int_info & 0xff);
    if kind == EXCEPTION && vector >= 32 {
        return if interrupts_by_virq { VALID | INTERRUPT | vector } else { 0 };
    }
    let by_instruction = kind == SOFTWARE || kind == EXCEPTION && has(ASKED_FOR, vector);
    if by_instruction && (injected ^ int_info) & (VALID | TYPE | 0xff) != 0 {
        return 0;
    }
    let mut event = int_info & (VALID | TYPE | ERROR_CODE | 0xff);
    if event & ERROR_CODE != 0 {
        event |= int_info & !0xffff_ffff;
    }
    event
}

/// The vector of an interrupt that can go in as V_IRQ: below 32, EXITINTINFO wouldn't tell it from an exception.
pub const fn vector_of_interrupt(event: u64) -> Option<u64> {
    let is_one = event & (VALID | TYPE) == VALID | INTERRUPT && event & 0xff >= 32;
    if is_one { Some(event & 0xff) } else { None }
}

/// Checks an event that a vmm wants to inject; 0 is none. One that this CPU refuses (APM volume 2, section 15.20) ends
/// as [`INVALID`](caisson_proto::vcpu::code::INVALID).
///
/// `few_error_codes`: see [`Quirks`].
///
/// # Errors
/// [`Status::Malformed`] for what is no event, [`Status::Unsupported`] for an error code that this CPU doesn't push:
/// build the frame in guest memory.
pub fn check(word: u64, few_error_codes: bool) -> Outcome {
    ensure(word == 0 || word & VALID != 0 && word & RESERVED == 0, Status::Malformed)?;
    let with_error = word & TYPE == EXCEPTION && word & ERROR_CODE != 0;
    ensure(!few_error_codes || !with_error || has(ALWAYS_PUSHED, word & 0xff), Status::Unsupported)
}
