//! A split virtqueue, the device's side (virtio 1.3, section 2.7).

use core::sync::atomic::{Ordering, fence};

use super::chain::{Chain, DESCRIPTOR};
use super::memory::{Broken, Reach, read_u16};

/// The available ring's flag by which a driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Of either ring, where its entries begin: behind flags and index.
const ENTRIES: u64 = 4;
/// Bytes of an entry of the available and of the used ring.
const AVAILABLE: u64 = 2;
const USED: u64 = 8;
/// Bytes of the event index behind either ring. It is there whether or not it is used.
const EVENT: u64 = 2;

/// A queue.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// The most entries that it can have.
    pub max: u16,
    /// Entries that the driver gave it.
    pub size: u16,
    /// Where the descriptors lie.
    pub table: u64,
    /// Where the available ring lies: the driver's area.
    pub driver: u64,
    /// Where the used ring lies: the device's area.
    pub device: u64,
    ready: bool,
    /// Event indices are used (VIRTIO_F_EVENT_IDX).
    events: bool,
    next_available: u16,
    next_used: u16,
    /// How far the driver was told.
    told: u16,
}

impl Queue {
    /// One of at most `max` entries.
    pub fn new(max: u16) -> Self {
        Self { max, ..Self::default() }
    }

    /// Whether the driver put it into service.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Puts it into service.
    ///
    /// # Errors
    /// [`Broken::Size`] and [`Broken::Place`]; it isn't in service then.
    pub fn enable(&mut self, memory: &dyn Reach, events: bool) -> Result<(), Broken> {
        if self.size > self.max || !self.size.is_power_of_two() {
            return Err(Broken::Size);
        }
        let size = u64::from(self.size);
        let areas = [
            (self.table, 16, size * DESCRIPTOR),
            (self.driver, 2, ENTRIES + size * AVAILABLE + EVENT),
            (self.device, 4, ENTRIES + size * USED + EVENT),
        ];
        if areas.iter().any(|&(at, align, bytes)| at % align != 0 || !memory.contains(at, bytes)) {
            return Err(Broken::Place);
        }
        (self.ready, self.events) = (true, events);
        (self.next_available, self.next_used, self.told) = (0, 0, 0);
        Ok(())
    }

    /// Takes it out of service. What the driver said of it is kept.
    pub fn disable(&mut self) {
        self.ready = false;
    }

    fn place(&self, number: u16) -> u64 {
        u64::from(number & self.size.wrapping_sub(1))
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// [`Broken`] if the driver put there what is none.
    pub fn pop(&mut self, memory: &mut dyn Reach) -> Result<Option<Chain>, Broken> {
        if !self.ready {
            return Ok(None);
        }
        let index = read_u16(memory, self.driver + 2)?;
        // The entry was written before the index was.
        fence(Ordering::Acquire);
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(Broken::Index);
        }
        if waiting == 0 {
            return Ok(None);
        }
        let entry = self.driver + ENTRIES + self.place(self.next_available) * AVAILABLE;
        let head = read_u16(memory, entry)?;
        let chain = Chain::walk(memory, self.table, self.size, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Gives a request back, with how many bytes of its writable part were written.
    ///
    /// # Errors
    /// [`Broken::Memory`].
    pub fn push(&mut self, memory: &mut dyn Reach, head: u16, written: u32) -> Result<(), Broken> {
        let entry = self.device + ENTRIES + self.place(self.next_used) * USED;
        let [a, b, c, d] = u32::from(head).to_le_bytes();
        let [e, f, g, h] = written.to_le_bytes();
        memory.write(entry, &[a, b, c, d, e, f, g, h])?;
        self.next_used = self.next_used.wrapping_add(1);
        fence(Ordering::Release);
        memory.write(self.device + 2, &self.next_used.to_le_bytes())
    }

    /// Has the driver notify of the next request. Whether one came meanwhile, of which it doesn't.
    ///
    /// # Errors
    /// [`Broken::Memory`].
    pub fn rearm(&mut self, memory: &mut dyn Reach) -> Result<bool, Broken> {
        if !self.ready {
            return Ok(false);
        }
        if self.events {
            let event = self.device + ENTRIES + u64::from(self.size) * USED;
            memory.write(event, &self.next_available.to_le_bytes())?;
            // The driver writes its index and then reads this; so this is written before the index is read.
            fence(Ordering::SeqCst);
        }
        Ok(read_u16(memory, self.driver + 2)? != self.next_available)
    }

    /// Whether the driver wants an interrupt for what was given back since it was asked last.
    ///
    /// # Errors
    /// [`Broken::Memory`].
    pub fn wants_interrupt(&mut self, memory: &mut dyn Reach) -> Result<bool, Broken> {
        let given = self.next_used.wrapping_sub(self.told);
        if given == 0 {
            return Ok(false);
        }
        let told = core::mem::replace(&mut self.told, self.next_used);
        // The driver writes what it wants and then looks at the used index, which must be visible by now.
        fence(Ordering::SeqCst);
        if !self.events {
            return Ok(read_u16(memory, self.driver)? & NO_INTERRUPT == 0);
        }
        let event = read_u16(memory, self.driver + ENTRIES + u64::from(self.size) * AVAILABLE)?;
        // Whether the entry of that number is among those given.
        Ok(event.wrapping_sub(told) < given)
    }
}
