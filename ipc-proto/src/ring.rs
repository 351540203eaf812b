//! A ring: single producer, single consumer, slots of one cache line in one shared page.
//!
//! This file has the layout and the arithmetic; `services/rt` has the atomics. Slot 0 is the header.
//! A slot is [`Slot`]: how many of its bytes count, then the bytes. `head` counts slots ever written and `tail`
//! slots ever read; 64 bits don't wrap. The reader trusts neither: [`available`] bounds what a hostile producer says.

/// Slots for messages in the page.
pub const SLOTS: u32 = 63;
/// Bytes that one slot carries.
pub const SLOT_BYTES: usize = 62;

/// One slot: a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C, align(2))]
pub struct Slot {
    /// Bytes of `bytes` that count; more than [`SLOT_BYTES`] is malformed.
    pub len: u8,
    /// Bit 0: the message goes on in the next slot.
    pub more: u8,
    /// The message.
    pub bytes: [u8; SLOT_BYTES],
}
const _: () = assert!(size_of::<Slot>() == 64);

/// Offsets of the header's words in the page, in bytes.
pub mod header {
    /// Slots ever written (u64; the producer writes it).
    pub const HEAD: usize = 0;
    /// Slots ever read (u64; the consumer writes it).
    pub const TAIL: usize = 8;
    /// Not 0: the consumer sleeps, ring its doorbell (u32).
    pub const CONSUMER_SLEEPS: usize = 16;
    /// Not 0: the producer waits for room, ring its doorbell (u32).
    pub const PRODUCER_WAITS: usize = 20;
    /// Messages that the producer dropped for lack of room (u32).
    pub const DROPPED: usize = 24;
}

/// How many slots can be read; `None` if the two counts can't be true.
pub const fn available(head: u64, tail: u64) -> Option<u32> {
    let count = head.wrapping_sub(tail);
    if count <= SLOTS as u64 { Some(count as u32) } else { None }
}

/// Where in the page the slot with this count lies, in bytes.
pub const fn slot_offset(count: u64) -> usize {
    ((count % SLOTS as u64 + 1) * 64) as usize
}

/// Doorbell bits of rings, beside those of [`crate::abi::doorbell`].
pub mod doorbell {
    /// Something was put in a ring that this service reads: bit = 32 + the ring's number there, up to 16 rings.
    pub const fn ring(number: usize) -> u64 {
        1 << (32 + (number & 15))
    }
    /// Room was made in a ring that this service writes: bit = its number there, up to 16 rings.
    pub const fn room(number: usize) -> u64 {
        1 << (number & 15)
    }
}
