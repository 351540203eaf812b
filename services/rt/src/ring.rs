//! The ring's algorithm, over any memory: one producer, one consumer, `ipc-proto/src/ring.rs`'s layout.
//!
//! Neither side trusts the other. A side keeps its own count to itself and only publishes it; the other's count is
//! bounded by [`available`] each time it is read, and where both can't be true the side starts anew from what it
//! reads, so that a restarted peer costs messages and never the ring. A slot is copied out once and then looked at.
//!
//! A message is visible as a whole: the producer writes all its slots before it publishes any of them.
//!
//! Sleeping: the consumer raises its flag, then looks once more; the producer publishes, then looks at the flag.
//! A sequentially consistent fence on either side between the two makes it impossible that both miss the other.
//! The same holds for a producer that waits for room.

use core::sync::atomic::Ordering;

use caisson_proto::ring::{SLOT_BYTES, SLOTS, Slot, available, header, slot_offset};
use zerocopy::{FromBytes, IntoBytes};

/// The page that both sides share.
pub trait Memory {
    /// Loads the u64 at byte offset `at`.
    fn load64(&self, at: usize, order: Ordering) -> u64;
    /// Stores the u64 at byte offset `at`.
    fn store64(&self, at: usize, value: u64, order: Ordering);
    /// Loads the u32 at byte offset `at`.
    fn load32(&self, at: usize, order: Ordering) -> u32;
    /// Swaps the u32 at byte offset `at`.
    fn swap32(&self, at: usize, value: u32, order: Ordering) -> u32;
    /// Copies the slot at byte offset `at` out.
    fn read_slot(&self, at: usize) -> [u64; 8];
    /// Copies a slot to byte offset `at`.
    fn write_slot(&self, at: usize, words: &[u64; 8]);
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// There is no room for this message now, or, if it has more bytes than a ring holds, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The writing side.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    head: u64,
}

impl<M: Memory> Producer<M> {
    /// Takes up the ring where it stands.
    pub fn new(memory: M) -> Self {
        let head = memory.load64(header::HEAD, Ordering::Relaxed);
        Self { memory, head }
    }

    /// Free slots.
    fn room(&mut self) -> u32 {
        let tail = self.memory.load64(header::TAIL, Ordering::Acquire);
        match available(self.head, tail) {
            Some(used) => SLOTS - used,
            None => {
                self.head = tail;
                SLOTS
            }
        }
    }

    fn publish(&mut self, slots: u64) {
        self.head = self.head.wrapping_add(slots);
        self.memory.store64(header::HEAD, self.head, Ordering::Release);
    }

    fn put(&self, nth: u64, bytes: &[u8], more: bool) {
        let mut slot = Slot { len: bytes.len() as u8, more: u8::from(more), bytes: [0; SLOT_BYTES] };
        slot.bytes[..bytes.len()].copy_from_slice(bytes);
        let mut words = [0; 8];
        words.as_mut_bytes().copy_from_slice(slot.as_bytes());
        self.memory.write_slot(slot_offset(self.head.wrapping_add(nth)), &words);
    }

    /// Puts one message into the ring, in as many slots as it needs.
    ///
    /// # Errors
    /// [`Full`], and nothing was written.
    pub fn push(&mut self, message: &[u8]) -> Result<(), Full> {
        let slots = message.len().div_ceil(SLOT_BYTES).max(1);
        if slots > self.room() as usize {
            return Err(Full);
        }
        if message.is_empty() {
            self.put(0, &[], false);
        }
        for (nth, part) in message.chunks(SLOT_BYTES).enumerate() {
            self.put(nth as u64, part, nth + 1 < slots);
        }
        self.publish(slots as u64);
        Ok(())
    }

    /// Puts as many bytes of a stream into the ring as there is room for, and says how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let room = self.room() as usize;
        let mut written = 0;
        let mut slots = 0;
        for part in bytes.chunks(SLOT_BYTES).take(room) {
            self.put(slots, part, false);
            slots += 1;
            written += part.len();
        }
        if slots > 0 {
            self.publish(slots);
        }
        written
    }

    /// Whether the consumer must be rung for what was published. Says so once a sleep.
    pub fn must_wake(&self) -> bool {
        self.memory.fence();
        self.memory.load32(header::CONSUMER_SLEEPS, Ordering::Relaxed) != 0
            && self.memory.swap32(header::CONSUMER_SLEEPS, 0, Ordering::AcqRel) != 0
    }

    /// Asks to be rung when there is room. False: there is room already, nobody will ring.
    pub fn wait_room(&mut self) -> bool {
        self.memory.swap32(header::PRODUCER_WAITS, 1, Ordering::AcqRel);
        self.memory.fence();
        if self.room() == 0 {
            return true;
        }
        self.memory.swap32(header::PRODUCER_WAITS, 0, Ordering::AcqRel);
        false
    }

    /// Whether the consumer has read everything.
    pub fn all_read(&mut self) -> bool {
        self.room() == SLOTS
    }

    /// Counts a message that was given up.
    pub fn count_dropped(&self) {
        let dropped = self.memory.load32(header::DROPPED, Ordering::Relaxed);
        self.memory.swap32(header::DROPPED, dropped.saturating_add(1), Ordering::Relaxed);
    }
}

/// What the consumer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing is there.
    Nothing,
    /// A message of so many bytes.
    Message(usize),
    /// Something that is no message, or longer than the buffer; it was skipped.
    Broken,
}

/// The reading side.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    tail: u64,
}

impl<M: Memory> Consumer<M> {
    /// Takes up the ring where it stands.
    pub fn new(memory: M) -> Self {
        let tail = memory.load64(header::TAIL, Ordering::Relaxed);
        Self { memory, tail }
    }

    /// Slots that can be read; `None` after the counts were found untrue and the ring was emptied.
    fn pending(&mut self) -> Option<u32> {
        let head = self.memory.load64(header::HEAD, Ordering::Acquire);
        let pending = available(head, self.tail);
        if pending.is_none() {
            self.tail = head;
            self.memory.store64(header::TAIL, self.tail, Ordering::Release);
        }
        pending
    }

    /// Takes one message out, whose bytes go to the start of `buffer`. One slot is one message of a stream.
    pub fn pop(&mut self, buffer: &mut [u8]) -> Received {
        let pending = match self.pending() {
            Some(0) => return Received::Nothing,
            Some(pending) => pending,
            None => return Received::Broken,
        };
        let mut filled = 0;
        let mut whole = false;
        let mut sound = true;
        for _ in 0..pending {
            let words = self.memory.read_slot(slot_offset(self.tail));
            self.tail = self.tail.wrapping_add(1);
            let Ok(slot) = Slot::read_from_bytes(words.as_bytes()) else { break };
            let part = slot.bytes.get(..usize::from(slot.len));
            match part.zip(buffer.get_mut(filled..filled + usize::from(slot.len))) {
                Some((part, place)) => {
                    place.copy_from_slice(part);
                    filled += part.len();
                }
                None => sound = false,
            }
            if slot.more & 1 == 0 {
                whole = true;
                break;
            }
        }
        self.memory.store64(header::TAIL, self.tail, Ordering::Release);
        if whole && sound { Received::Message(filled) } else { Received::Broken }
    }

    /// Whether the producer must be rung for the room that was made. Says so once a wait.
    pub fn must_wake(&self) -> bool {
        self.memory.fence();
        self.memory.load32(header::PRODUCER_WAITS, Ordering::Relaxed) != 0
            && self.memory.swap32(header::PRODUCER_WAITS, 0, Ordering::AcqRel) != 0
    }

    /// Asks to be rung for the next message. False: there is one already, nobody will ring.
    pub fn sleep(&mut self) -> bool {
        self.memory.swap32(header::CONSUMER_SLEEPS, 1, Ordering::AcqRel);
        self.memory.fence();
        if self.pending() == Some(0) {
            return true;
        }
        self.memory.swap32(header::CONSUMER_SLEEPS, 0, Ordering::AcqRel);
        false
    }

    /// Messages that the producer says it dropped.
    pub fn dropped(&self) -> u32 {
        self.memory.load32(header::DROPPED, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
