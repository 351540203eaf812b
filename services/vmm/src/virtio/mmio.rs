//! The registers of a device in memory, and its life (virtio 1.3, sections 2.1, 3.1 and 4.2.2).

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_proto::console::Knob;
use caisson_proto::stats::VmStat;

use super::console::Console;
use super::memory::{Broken, Reach};
use super::net::Net;
use super::queue::Queue;
use super::{Device, Served, Trouble};
use crate::need::Told;

/// Where a device's own configuration begins.
const CONFIG: u64 = 0x100;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"CSSN");

/// Features of every device: event indices, version 1, and addresses that are the platform's to say.
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;

/// Bits of the status.
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const KNOWN: u32 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;

/// Reasons of an interrupt.
const USED: u32 = 1;
const CHANGED: u32 = 2;

/// What may be done at one access, in bytes that are copied: more waits until the driver acknowledges the interrupt.
const BUDGET: u64 = 4 << 20;
/// What a request costs at the least.
const LEAST: u64 = 16 << 10;

/// A device behind its registers.
#[derive(Debug)]
pub struct Transport {
    device: Box<dyn Device>,
    status: u32,
    features_page: u32,
    driver_page: u32,
    accepted: u64,
    selected: u32,
    interrupt: u32,
    generation: u32,
    queues: Vec<Queue>,
    /// Bit n: queue n has more than could be done at once.
    more: u32,
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

impl Transport {
    /// Registers for this device.
    pub fn new(device: Box<dyn Device>) -> Self {
        let queues = device.queues().iter().map(|max| Queue::new(*max)).collect();
        Self {
            device,
            status: 0,
            features_page: 0,
            driver_page: 0,
            accepted: 0,
            selected: 0,
            interrupt: 0,
            generation: 0,
            queues,
            more: 0,
        }
    }

    /// Whether its interrupt line is high.
    pub fn line(&self) -> bool {
        self.interrupt != 0
    }

    /// Whether it waits for its driver to reset it.
    pub fn is_broken(&self) -> bool {
        self.status & NEEDS_RESET != 0
    }

    /// Whether its driver uses it.
    pub fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Changes how much memory the guest is to have, and tells its driver; whether that is this device's to change.
    pub fn resize(&mut self, knob: Knob, bytes: u64) -> bool {
        let before = self.device.config();
        if !self.device.resize(knob, bytes) {
            return false;
        }
        if before != self.device.config() {
            self.changed();
        }
        true
    }

    /// The machine has too little memory, or enough again: the driver is told if that changes something.
    pub fn follow(&mut self, told: &Told) {
        if self.device.follow(told) {
            self.changed();
        }
    }

    /// The driver is to look at the configuration.
    fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.status & DRIVER_OK != 0 {
            self.interrupt |= CHANGED;
        }
    }

    /// What the device knows for the VM's statistics.
    pub fn known(&self) -> Vec<(VmStat, u64)> {
        self.device.known()
    }

    /// The console, if the device is one.
    pub fn console(&mut self) -> Option<&mut Console> {
        self.device.console()
    }

    /// The network's card, if the device is one.
    pub fn net(&mut self) -> Option<&mut Net> {
        self.device.net()
    }

    /// Leaves what is in a queue until the driver acknowledges the interrupt, which it gets for that.
    pub fn defer(&mut self, queue: u16) {
        if self.is_live() {
            self.more |= 1 << queue;
            self.interrupt |= USED;
        }
    }

    /// Does what waits in a queue, of its own accord.
    pub fn poke(&mut self, queue: u16, memory: &mut dyn Reach) -> Option<Trouble> {
        self.run(queue.into(), memory)
    }

    fn offered(&self) -> u64 {
        self.device.features() | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.selected as usize)
    }

    /// Reads up to eight bytes. Registers have four; what isn't one reads as zeros.
    pub fn read(&self, offset: u64, bytes: usize) -> u64 {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = self.device.config();
            let byte = |n: usize| config.get(at as usize + n).copied().unwrap_or(0);
            return (0..bytes).fold(0, |value, n| value | u64::from(byte(n)) << (8 * n));
        }
        if bytes != 4 {
            return 0;
        }
        let shown = match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.id(),
            0x00c => VENDOR,
            0x010 if self.features_page == 0 => low(self.offered()),
            0x010 if self.features_page == 1 => high(self.offered()),
            0x034 => self.queue().map_or(0, |queue| queue.max.into()),
            0x044 => self.queue().is_some_and(Queue::is_ready).into(),
            0x060 => self.interrupt,
            0x070 => self.status,
            // There is no shared memory: its length and its base are all ones.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => self.generation,
            _ => 0,
        };
        shown.into()
    }

    /// Writes up to eight bytes. What has to be told of it is in the result.
    pub fn write(&mut self, offset: u64, bytes: usize, value: u64, memory: &mut dyn Reach) -> Option<Trouble> {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let value = value.to_le_bytes();
            self.device.configure(at as usize, value.get(..bytes).unwrap_or_default());
            return None;
        }
        if bytes != 4 {
            return None;
        }
        let value = value as u32;
        match offset {
            0x014 => self.features_page = value,
            0x020 => self.accept(value),
            0x024 => self.driver_page = value,
            0x030 => self.selected = value,
            0x044 => return self.set_ready(value, memory),
            0x050 => return self.run(value, memory),
            0x064 => {
                self.interrupt &= !value;
                let waiting = core::mem::take(&mut self.more);
                let queues = (0..self.queues.len() as u32).filter(|index| waiting >> index & 1 == 1);
                return queues.fold(None, |told, index| self.run(index, memory).or(told));
            }
            0x070 => self.set_status(value),
            0x038 | 0x080..=0x0a4 => self.describe(offset, value),
            _ => {}
        }
        None
    }

    fn accept(&mut self, value: u32) {
        // What was agreed stays agreed.
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_page {
            0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(value),
            1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Where the selected queue is to lie. A queue in service stays where it is.
    fn describe(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.selected as usize).filter(|queue| !queue.is_ready()) else { return };
        let set_low = |place: &mut u64| *place = *place & !0xffff_ffff | u64::from(value);
        let set_high = |place: &mut u64| *place = *place & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            // What is too large is refused when the queue is put into service.
            0x038 => queue.size = u16::try_from(value).unwrap_or(u16::MAX),
            0x080 => set_low(&mut queue.table),
            0x084 => set_high(&mut queue.table),
            0x090 => set_low(&mut queue.driver),
            0x094 => set_high(&mut queue.driver),
            0x0a0 => set_low(&mut queue.device),
            0x0a4 => set_high(&mut queue.device),
            _ => {}
        }
    }

    fn set_ready(&mut self, value: u32, memory: &mut dyn Reach) -> Option<Trouble> {
        let events = self.accepted & EVENT_IDX != 0;
        let may = self.status & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK;
        let queue = self.queues.get_mut(self.selected as usize)?;
        match value {
            0 => queue.disable(),
            1 if may && !queue.is_ready() => {
                if let Err(broken) = queue.enable(memory, events) {
                    return self.fail(broken);
                }
            }
            _ => {}
        }
        None
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.device.reset();
            self.queues.iter_mut().for_each(|queue| *queue = Queue::new(queue.max));
            (self.status, self.accepted, self.interrupt, self.more) = (0, 0, 0, 0);
            (self.features_page, self.driver_page, self.selected) = (0, 0, 0);
            return;
        }
        // Only a reset clears bits.
        let mut added = value & KNOWN;
        let is_possible = self.accepted & !self.offered() == 0 && self.accepted & VERSION_1 != 0;
        if self.status & FEATURES_OK == 0 && !is_possible {
            added &= !FEATURES_OK;
        }
        if (self.status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
    }

    /// The device is of no use until it is reset. That it does nothing meanwhile is also why this is told once.
    fn fail(&mut self, broken: Broken) -> Option<Trouble> {
        self.status |= NEEDS_RESET;
        self.more = 0;
        if self.status & DRIVER_OK != 0 {
            self.generation = self.generation.wrapping_add(1);
            self.interrupt |= CHANGED;
        }
        Some(Trouble::Broken(broken))
    }

    /// Does what waits in a queue.
    fn run(&mut self, index: u32, memory: &mut dyn Reach) -> Option<Trouble> {
        if !self.is_live() {
            return None;
        }
        match self.drain(index, memory) {
            Ok(told) => told,
            Err(broken) => self.fail(broken),
        }
    }

    fn drain(&mut self, index: u32, memory: &mut dyn Reach) -> Result<Option<Trouble>, Broken> {
        let (Some(queue), Ok(number)) = (self.queues.get_mut(index as usize), u16::try_from(index)) else {
            return Ok(None);
        };
        let (mut left, mut told, mut is_changed) = (BUDGET, None, false);
        let goes_on = loop {
            if !self.device.wants(number) {
                break false;
            }
            let Some(chain) = queue.pop(memory)? else {
                // The index may change at any time, to and fro: each look costs, too.
                left = left.saturating_sub(LEAST);
                match queue.rearm(memory)? {
                    true if left > 0 => continue,
                    more => break more,
                }
            };
            let Served { written, cost, trouble, changed } = self.device.serve(number, &chain, memory)?;
            queue.push(memory, chain.head, written)?;
            told = told.or(trouble);
            is_changed |= changed;
            left = left.saturating_sub(cost.max(LEAST));
            if left == 0 {
                break true;
            }
        };
        // What is left is done when the driver acknowledges, so it is told in any case.
        if goes_on {
            self.more |= 1 << index;
        }
        if queue.wants_interrupt(memory)? || goes_on {
            self.interrupt |= USED;
        }
        if is_changed {
            self.changed();
        }
        Ok(told)
    }
}
