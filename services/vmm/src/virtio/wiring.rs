//! The devices among the others of their VM: addresses, interrupts, the console, the log.

use caisson_proto::console::Knob;

use super::console::{RECEIVE, TRANSMIT};
use super::memory::{Guest, Reach};
use super::mmio::Transport;
use super::{FIRST_PIN, Trouble, Virtio};
use crate::need::Told;
use crate::platform::{Event, Platform};
use crate::vmm::Vmm;

/// How often the guest's output is fetched before other things have their turn.
const ROUNDS: usize = 16;

impl<P: Platform> Vmm<P> {
    /// The VM's virtio devices. They are part of it before it starts.
    pub fn attach(&mut self, devices: Virtio) {
        self.virtio = devices;
    }

    /// Something begins in which devices may need memory: their wait for it does so anew.
    #[inline]
    pub fn activate(&mut self) {
        self.devices_wait = None;
    }

    /// Reads a register; `None` where there is no device.
    pub(crate) fn virtio_read(&mut self, gpa: u64, bytes: usize) -> Option<u64> {
        let (number, offset) = self.virtio.at(gpa)?;
        self.virtio.device(number).map(|device| device.read(offset, bytes))
    }

    /// Writes a register; `None` where there is no device.
    pub(crate) fn virtio_write(&mut self, gpa: u64, bytes: usize, value: u64) -> Option<()> {
        let (number, offset) = self.virtio.at(gpa)?;
        self.with_virtio(number, |device, memory| device.write(offset, bytes, value, memory));
        self.update_virtio_console();
        if self.virtio.net() == Some(number) {
            self.update_virtio_net(number);
        }
        Some(())
    }

    /// Lets a device act, and carries out what comes of it.
    pub(super) fn with_virtio(
        &mut self, number: u8, act: impl FnOnce(&mut Transport, &mut dyn Reach) -> Option<Trouble>,
    ) {
        let Some(device) = self.virtio.device(number) else { return };
        let before = device.line();
        let (khz, until) = (self.facts.tsc_khz, self.devices_wait);
        let mut memory = Guest { ram: &mut self.ram, platform: &mut self.platform, khz, until };
        let told = act(device, &mut memory);
        self.devices_wait = memory.until;
        let after = device.line();
        if before != after {
            self.set_line(FIRST_PIN + number, after);
        }
        if let Some(trouble) = told {
            self.note(Event::Virtio(number, trouble));
        }
    }

    /// Changes how much memory the guest is to have. Whether it has a device for that, and may have so much.
    pub fn resize(&mut self, knob: Knob, bytes: u64) -> bool {
        (0..self.virtio.count()).any(|number| {
            let mut taken = false;
            self.with_virtio(number, |device, _| {
                taken = device.resize(knob, bytes);
                None
            });
            taken
        })
    }

    /// The machine has too little memory, or enough again.
    pub fn follow(&mut self, told: &Told) {
        for number in 0..self.virtio.count() {
            self.with_virtio(number, |device, _| {
                device.follow(told);
                None
            });
        }
    }

    /// Gives bytes to the virtio console; how many it took. `None` if there is none in use.
    pub(crate) fn virtio_input(&mut self, bytes: &[u8]) -> Option<usize> {
        let number = self.virtio.console()?;
        let mut taken = 0;
        self.with_virtio(number, |device, memory| {
            taken = device.console().map_or(0, |console| console.receive(bytes));
            device.poke(RECEIVE, memory)
        });
        Some(taken)
    }

    /// Bytes that it would take. `None` if there is none in use.
    pub(crate) fn virtio_space(&mut self) -> Option<usize> {
        let number = self.virtio.console()?;
        self.virtio.device(number)?.console().map(|console| console.room())
    }

    /// Sends what the guest wrote to its virtio console, and has it wait if that isn't taken.
    pub(crate) fn update_virtio_console(&mut self) {
        let Some(number) = self.virtio.console() else { return };
        for _ in 0..ROUNDS {
            let is_blocked = self.output.is_blocked();
            self.with_virtio(number, |device, memory| {
                device.console()?.block(is_blocked);
                device.poke(TRANSMIT, memory)
            });
            let fetched = self.virtio.device(number).and_then(Transport::console).map(|console| console.fetch());
            let Some(bytes) = fetched.filter(|bytes| !bytes.is_empty()) else { return };
            bytes.into_iter().for_each(|byte| self.output.push(&mut self.platform, byte));
            self.output.flush(&mut self.platform);
        }
    }
}

impl Trouble {
    /// What it is in a few words, and a number that says more.
    pub fn describe(self) -> (&'static str, u64) {
        match self {
            Self::Broken(broken) => (broken.why(), 0),
            Self::DiskFull => ("the disk's overlay is full", 0),
            Self::NotPlugged(status) => ("memory has none to plug: status", status as u64),
            Self::NotReleased(status) => ("memory took no pages back: status", status as u64),
            Self::GaveBack(pages) => ("pages that the guest gave back", pages),
        }
    }
}
