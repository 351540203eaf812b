//! A driver that keeps to the rules, as far as a test wants it: one device with its registers, and queues.

use caisson_vmm::virtio::Trouble;
use caisson_vmm::virtio::mmio::Transport;

use super::memory::Flat;

/// A descriptor says that another follows.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// Where queue n lies: its descriptors, its available ring, its used ring.
pub const fn areas(queue: u64) -> [u64; 3] {
    let start = 0x1000 + queue * 0x3000;
    [start, start + 0x1000, start + 0x2000]
}
/// Entries of each queue.
pub const SIZE: u16 = 16;
/// What a driver accepts of every device: version 1 and addresses of the platform; with event indices.
pub const USUAL: u64 = 3 << 32;
/// Event indices.
pub const EVENT_IDX: u64 = 1 << 29;

/// The driver with its device.
#[derive(Debug)]
pub struct Driver {
    /// The device.
    pub device: Transport,
    /// Memory of both.
    pub memory: Flat,
    /// What was told.
    pub told: Vec<Trouble>,
    available: [u16; 8],
    used: [u16; 8],
}

impl Driver {
    /// A device that nobody touched yet, and so many bytes of memory.
    pub fn new(device: Transport, bytes: usize) -> Self {
        Self { device, memory: Flat::new(bytes), told: Vec::new(), available: [0; 8], used: [0; 8] }
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        self.device.read(offset, 4) as u32
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.told.extend(self.device.write(offset, 4, value.into(), &mut self.memory));
    }

    /// All features that the device offers.
    pub fn offered(&mut self) -> u64 {
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        u64::from(low) | u64::from(self.read(0x10)) << 32
    }

    /// Brings the device to life with these features; whether it accepts them.
    pub fn start(&mut self, features: u64) -> bool {
        self.write(0x70, 0);
        (self.available, self.used) = ([0; 8], [0; 8]);
        self.write(0x70, 3);
        for (page, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, page);
            self.write(0x20, half);
        }
        self.write(0x70, 11);
        if self.read(0x70) & 8 == 0 {
            return false;
        }
        for queue in 0..8 {
            self.write(0x30, queue);
            if self.read(0x34) != 0 {
                self.queue(SIZE.into(), areas(queue.into()));
                self.memory.bytes[areas(queue.into())[0] as usize..][..0x3000].fill(0);
            }
        }
        self.write(0x70, 15);
        true
    }

    /// Puts the selected queue into service.
    pub fn queue(&mut self, size: u32, areas: [u64; 3]) {
        self.write(0x38, size);
        for (register, area) in [0x80, 0x90, 0xa0].into_iter().zip(areas) {
            self.write(register, area as u32);
            self.write(register + 4, (area >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Puts a descriptor into a queue's table.
    pub fn descriptor(&mut self, queue: u64, number: u16, (gpa, bytes): (u64, u32), flags: u16, next: u16) {
        let mut descriptor = gpa.to_le_bytes().to_vec();
        descriptor.extend(bytes.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        self.memory.put(areas(queue)[0] + u64::from(number) * 16, &descriptor);
    }

    /// Makes a chain of these buffers, from descriptor `first` on: those that the device reads, then those that it writes.
    pub fn chain(&mut self, queue: u64, first: u16, reads: &[(u64, u32)], writes: &[(u64, u32)]) {
        let all: Vec<_> = reads.iter().map(|span| (*span, 0)).chain(writes.iter().map(|span| (*span, WRITE))).collect();
        for (number, &(span, flags)) in (first..).zip(&all) {
            let is_last = usize::from(number - first) + 1 == all.len();
            self.descriptor(queue, number, span, if is_last { flags } else { flags | NEXT }, number + 1);
        }
    }

    /// Makes the chain that begins at a descriptor available, without a notification.
    pub fn offer(&mut self, queue: u64, head: u16) {
        let ring = areas(queue)[1];
        let index = &mut self.available[queue as usize];
        self.memory.put(ring + 4 + u64::from(*index % SIZE) * 2, &head.to_le_bytes());
        *index = index.wrapping_add(1);
        self.memory.put(ring + 2, &index.to_le_bytes());
    }

    /// Notifies of a queue.
    pub fn notify(&mut self, queue: u32) {
        self.write(0x50, queue);
    }

    /// The next request that came back: its head and how much was written.
    pub fn used(&mut self, queue: u64) -> Option<(u32, u32)> {
        let ring = areas(queue)[2];
        let index = &mut self.used[queue as usize];
        if u16::from_le_bytes(self.memory.get(ring + 2)) == *index {
            return None;
        }
        let at = ring + 4 + u64::from(*index % SIZE) * 8;
        *index = index.wrapping_add(1);
        Some((u32::from_le_bytes(self.memory.get(at)), u32::from_le_bytes(self.memory.get(at + 4))))
    }
}
