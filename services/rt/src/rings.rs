//! This service's rings: the algorithm of [`crate::ring`] over the pages that the kernel maps, with doorbells.
//!
//! A ring's end can be taken once, so that a count is never kept twice.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use caisson_proto::addr::{PAGE_SIZE, ServiceId};
use caisson_proto::bundle::MAX_RINGS;
use caisson_proto::info::{RingInfo, RingUse};
use caisson_proto::layout;
use caisson_proto::ring::doorbell;
use caisson_proto::wire::Field;

use crate::info;
use crate::ring::{Consumer, Full, Memory, Producer, Received};
use crate::sys::ring_doorbell;

const PRODUCER: u8 = 1;
const CONSUMER: u8 = 2;

static TAKEN: AtomicU64 = AtomicU64::new(0);

/// A ring's page. The other side may write anything at any time, so every access is atomic.
#[derive(Debug)]
struct Page(u64);

impl Page {
    fn word64(&self, at: usize) -> &AtomicU64 {
        let at = at & (PAGE_SIZE as usize - 8);
        // SAFETY: the kernel maps the page of every ring of the info page for the life of this service, and a
        // `Page` exists for those only. The offset is aligned and in the page. All parties use atomics on it.
        unsafe { AtomicU64::from_ptr((self.0 + at as u64) as *mut u64) }
    }

    fn word32(&self, at: usize) -> &AtomicU32 {
        let at = at & (PAGE_SIZE as usize - 4);
        // SAFETY: as for `word64`. The header's u32s are never accessed as parts of a u64.
        unsafe { AtomicU32::from_ptr((self.0 + at as u64) as *mut u32) }
    }
}

impl Memory for Page {
    fn load64(&self, at: usize, order: Ordering) -> u64 {
        self.word64(at).load(order)
    }
    fn store64(&self, at: usize, value: u64, order: Ordering) {
        self.word64(at).store(value, order);
    }
    fn load32(&self, at: usize, order: Ordering) -> u32 {
        self.word32(at).load(order)
    }
    fn swap32(&self, at: usize, value: u32, order: Ordering) -> u32 {
        self.word32(at).swap(value, order)
    }
    fn read_slot(&self, at: usize) -> [u64; 8] {
        core::array::from_fn(|n| self.word64(at + n * 8).load(Ordering::Relaxed))
    }
    fn write_slot(&self, at: usize, words: &[u64; 8]) {
        for (n, &word) in words.iter().enumerate() {
            self.word64(at + n * 8).store(word, Ordering::Relaxed);
        }
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The rings of this service, by number.
pub fn all() -> impl Iterator<Item = (usize, &'static RingInfo)> {
    let info = info();
    info.ring.iter().enumerate().take((info.rings as usize).min(MAX_RINGS))
}

fn take(number: usize, role: u8) -> Option<(Page, RingInfo)> {
    let ring = all().find(|&(n, ring)| n == number && ring.role == role)?.1;
    let bit = 1 << number;
    if TAKEN.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return None;
    }
    Some((Page(layout::RINGS + number as u64 * PAGE_SIZE), *ring))
}

/// Rings the other side of a ring for a life before this one, which may have ended between taking note that the other side
/// sleeps and ringing it.
fn catch_up(ring: &RingInfo, bell: impl Fn(usize) -> u64) {
    if ServiceId::from_bits(info().head.id).generation() > 0 {
        // A refusal means that the peer is dead; its successor looks at its rings when it starts.
        let _ = ring_doorbell(ring.peer, bell(usize::from(ring.peer_number)));
    }
}

/// What this ring carries, if it is a known use.
pub fn purpose(ring: &RingInfo) -> Option<RingUse> {
    RingUse::from_word(u64::from(ring.purpose))
}

/// The end of a ring that this service writes.
#[derive(Debug)]
pub struct Outward {
    producer: Producer<Page>,
    ring: RingInfo,
    number: usize,
}

impl Outward {
    /// Takes the ring with this number. `None` if it isn't written here or is taken.
    pub fn take(number: usize) -> Option<Self> {
        let (page, ring) = take(number, PRODUCER)?;
        catch_up(&ring, doorbell::ring);
        Some(Self { producer: Producer::new(page), ring, number })
    }

    /// Takes the first ring of this use.
    pub fn find(wanted: RingUse) -> Option<Self> {
        all()
            .filter(|(_, ring)| ring.role == PRODUCER && purpose(ring) == Some(wanted))
            .find_map(|(number, _)| Self::take(number))
    }

    /// What the kernel tells of it.
    pub fn info(&self) -> &RingInfo {
        &self.ring
    }

    /// The doorbell bit that tells of room here.
    pub fn room_bit(&self) -> u64 {
        doorbell::room(self.number)
    }

    /// Sends one message and wakes the reader if it sleeps.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Full> {
        self.producer.push(message)?;
        self.wake();
        Ok(())
    }

    /// Sends one message or counts it as dropped.
    pub fn send_or_drop(&mut self, message: &[u8]) {
        if self.send(message).is_err() {
            self.drop_one();
        }
    }

    /// Counts a message that was given up.
    pub fn drop_one(&mut self) {
        self.producer.count_dropped();
    }

    /// Sends as many bytes of a stream as there is room for and says how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let written = self.producer.write(bytes);
        if written > 0 {
            self.wake();
        }
        written
    }

    /// Whether the reader has read everything.
    pub fn all_read(&mut self) -> bool {
        self.producer.all_read()
    }

    /// Asks for the doorbell [`room_bit`](Self::room_bit). False: there is room already.
    pub fn wait_room(&mut self) -> bool {
        self.producer.wait_room()
    }

    fn wake(&self) {
        if self.producer.must_wake() {
            // As in `catch_up`.
            let _ = ring_doorbell(self.ring.peer, doorbell::ring(usize::from(self.ring.peer_number)));
        }
    }
}

/// The end of a ring that this service reads.
#[derive(Debug)]
pub struct Inward {
    consumer: Consumer<Page>,
    ring: RingInfo,
    number: usize,
}

impl Inward {
    /// Takes the ring with this number. `None` if it isn't read here or is taken.
    pub fn take(number: usize) -> Option<Self> {
        let (page, ring) = take(number, CONSUMER)?;
        catch_up(&ring, doorbell::room);
        Some(Self { consumer: Consumer::new(page), ring, number })
    }

    /// Takes the first ring of this use.
    pub fn find(wanted: RingUse) -> Option<Self> {
        all()
            .filter(|(_, ring)| ring.role == CONSUMER && purpose(ring) == Some(wanted))
            .find_map(|(number, _)| Self::take(number))
    }

    /// What the kernel tells of it.
    pub fn info(&self) -> &RingInfo {
        &self.ring
    }

    /// The doorbell bit that tells of something to read here.
    pub fn data_bit(&self) -> u64 {
        doorbell::ring(self.number)
    }

    /// Takes one message, or one slot of a stream, and wakes the writer if it waits for room.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        let received = self.consumer.pop(buffer);
        if received != Received::Nothing && self.consumer.must_wake() {
            // As in `catch_up`.
            let _ = ring_doorbell(self.ring.peer, doorbell::room(usize::from(self.ring.peer_number)));
        }
        received
    }

    /// Asks for the doorbell [`data_bit`](Self::data_bit). False: there is something to read already.
    pub fn sleep(&mut self) -> bool {
        self.consumer.sleep()
    }

    /// Messages that the writer dropped so far.
    pub fn dropped(&self) -> u32 {
        self.consumer.dropped()
    }
}
