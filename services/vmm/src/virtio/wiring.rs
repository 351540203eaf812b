//! The devices among the others of their VM: addresses, interrupts, the log.

use super::memory::Guest;
use super::{FIRST_PIN, Trouble, Virtio};
use crate::platform::{Event, Platform};
use crate::vmm::Vmm;

impl<P: Platform> Vmm<P> {
    /// The VM's virtio devices. They are part of it before it starts.
    pub fn attach(&mut self, devices: Virtio) {
        self.virtio = devices;
    }

    /// Reads a register; `None` where there is no device.
    pub(crate) fn virtio_read(&mut self, gpa: u64, bytes: usize) -> Option<u64> {
        self.virtio.at(gpa).map(|(_, device, offset)| device.read(offset, bytes))
    }

    /// Writes a register; `None` where there is no device.
    pub(crate) fn virtio_write(&mut self, gpa: u64, bytes: usize, value: u64) -> Option<()> {
        let (number, device, offset) = self.virtio.at(gpa)?;
        let before = device.line();
        let mut memory = Guest { ram: &mut self.ram, platform: &mut self.platform };
        let told = device.write(offset, bytes, value, &mut memory);
        let after = device.line();
        if before != after {
            self.set_line(FIRST_PIN + number, after);
        }
        if let Some(trouble) = told {
            self.note(Event::Virtio(number, trouble));
        }
        Some(())
    }
}

impl Trouble {
    /// What it is in a few words, and a number that says more.
    pub fn describe(self) -> (&'static str, u64) {
        match self {
            Self::Broken(broken) => (broken.why(), 0),
            Self::DiskFull => ("the disk's overlay is full", 0),
            Self::NotReleased(status) => ("memory took no pages back: status", status as u64),
            Self::GaveBack(pages) => ("pages that the guest gave back", pages),
        }
    }
}
