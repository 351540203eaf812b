//! Devices by virtio (OASIS, version 1.3), behind registers in memory.
//!
//! The guest finds them by ACPI. A device is a [`Device`]: it gets requests as chains that are checked. Whatever is wrong
//! with a queue or a request leaves the device in need of a reset; it is logged once, and nothing else comes of it.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod mem;
pub mod memory;
pub mod mmio;
pub mod net;
mod network;
pub mod overlay;
pub mod queue;
mod wiring;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::ops::Range;

use caisson_proto::abi::Status;
use caisson_proto::console::Knob;
use caisson_proto::stats::VmStat;
use caisson_proto::supervisor::SetupError;
use caisson_proto::vmm::VmConfig;

use self::chain::Chain;
use self::memory::{Broken, Reach};
use self::mmio::Transport;
use crate::need::Told;

/// Bytes of a device's configuration at the most.
pub const CONFIG: usize = 64;
/// Devices of a VM at the most: one for each pin of the I/O APIC behind those of the PC.
pub const MAX_DEVICES: usize = 8;
/// Where their registers lie: a page each.
pub const PLACE: Range<u64> = 0xd000_0000..0xd000_0000 + MAX_DEVICES as u64 * PAGE;
/// The first one's interrupt.
pub const FIRST_PIN: u8 = 16;
const PAGE: u64 = 4096;

const _: () = assert!(FIRST_PIN as usize + MAX_DEVICES <= crate::dev::ioapic::PINS as usize);

/// What is worth telling of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its driver broke a rule, and has to reset it.
    Broken(Broken),
    /// No more of the disk can be changed: what the guest writes fails.
    DiskFull,
    /// memory can't promise what the guest would plug.
    NotPlugged(Status),
    /// memory didn't take pages back.
    NotReleased(Status),
    /// The guest gave back so many pages of 4 KiB so far. Told each time that they have doubled.
    GaveBack(u64),
}

/// What came of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// Bytes that were written from the beginning of its writable part on.
    pub written: u32,
    /// What it cost, in bytes that were copied or could have been.
    pub cost: u64,
    /// What is worth telling.
    pub trouble: Option<Trouble>,
    /// The driver is to look at the configuration.
    pub changed: bool,
}

/// A device behind its registers and queues.
pub trait Device: Debug {
    /// What it is (virtio 1.3, section 5).
    fn id(&self) -> u32;

    /// Its own features; those of all devices come on top.
    fn features(&self) -> u64;

    /// How many entries each of its queues can have.
    fn queues(&self) -> &'static [u16];

    /// Its configuration.
    fn config(&self) -> [u8; CONFIG];

    /// The driver writes its configuration.
    fn configure(&mut self, _offset: usize, _bytes: &[u8]) {}

    /// The driver begins anew.
    fn reset(&mut self) {}

    /// Whether it takes requests of this queue now. If not, it is asked again when that may have changed.
    fn wants(&self, _queue: u16) -> bool {
        true
    }

    /// Changes how much memory the guest is to have. Whether it is this device's to change, and can be changed so.
    fn resize(&mut self, _knob: Knob, _bytes: u64) -> bool {
        false
    }

    /// The machine has too little memory, or enough again. Whether its driver is to look at it.
    fn follow(&mut self, _told: &Told) -> bool {
        false
    }

    /// What it knows for the VM's statistics.
    fn known(&self) -> Vec<(VmStat, u64)> {
        Vec::new()
    }

    /// The console, if it is one.
    fn console(&mut self) -> Option<&mut console::Console> {
        None
    }

    /// The network's card, if it is one.
    fn net(&mut self) -> Option<&mut net::Net> {
        None
    }

    /// Carries out a request of queue `queue`.
    ///
    /// # Errors
    /// [`Broken`] if it is none.
    fn serve(&mut self, queue: u16, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken>;
}

/// Puts bytes into a configuration, as far as there is room.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = at.checked_add(bytes.len()).and_then(|end| into.get_mut(at..end)) {
        place.copy_from_slice(bytes);
    }
}

/// The devices of a VM, in the order of their places and pins.
#[derive(Debug, Default)]
pub struct Virtio {
    devices: Vec<Transport>,
}

/// How many devices a VM has.
pub fn count(config: &VmConfig) -> usize {
    usize::from(config.virtio.disk.is_some())
        + usize::from(config.virtio.balloon.is_some())
        + usize::from(config.virtio.plug.is_some())
        + usize::from(config.virtio.console)
        + usize::from(config.virtio.net.is_some())
}

impl Virtio {
    /// Those that the configuration asks for; the disk's contents are `disk`.
    ///
    /// # Errors
    /// `Config` for a disk that isn't of whole sectors, `Memory` if there is none for what may be changed of it.
    pub fn new(config: &VmConfig, disk: &'static [u8]) -> Result<Self, SetupError> {
        let mut devices = Vec::new();
        if let Some(wanted) = &config.virtio.disk {
            if disk.is_empty() || !(disk.len() as u64).is_multiple_of(blk::SECTOR) {
                return Err(SetupError::Config);
            }
            let disk = overlay::Overlay::new(disk, wanted.overlay).map_err(|_| SetupError::Memory)?;
            devices.push(Transport::new(Box::new(blk::Blk::new(disk))));
        }
        if let Some(wanted) = &config.virtio.balloon {
            let pages = |bytes: u64| u32::try_from(bytes / PAGE).map_err(|_| SetupError::Config);
            let most = config.memory.saturating_sub(balloon::FLOOR).max(wanted.target);
            let balloon = balloon::Balloon::new(pages(wanted.target)?, pages(most)?);
            devices.push(Transport::new(Box::new(balloon)));
        }
        if let Some(wanted) = &config.virtio.plug {
            let region = crate::ram::Ram::with_region(config.memory, wanted.most).plugged().region();
            devices.push(Transport::new(Box::new(mem::Mem::new(region, wanted.wanted))));
        }
        if config.virtio.console {
            devices.push(Transport::new(Box::new(console::Console::default())));
        }
        if let Some(wanted) = &config.virtio.net {
            devices.push(Transport::new(Box::new(net::Net::new(wanted.mac))));
        }
        Ok(Self { devices })
    }

    /// Number of the device whose registers lie at an address, and how far into them it is.
    fn at(&self, gpa: u64) -> Option<(u8, u64)> {
        let offset = gpa.checked_sub(PLACE.start)?;
        let number = usize::try_from(offset / PAGE).ok().filter(|number| *number < self.devices.len())?;
        Some((number as u8, offset % PAGE))
    }

    /// What the devices know for the VM's statistics.
    pub(crate) fn known(&self) -> Vec<(VmStat, u64)> {
        self.devices.iter().flat_map(|device| device.known()).collect()
    }

    fn count(&self) -> u8 {
        self.devices.len() as u8
    }

    fn device(&mut self, number: u8) -> Option<&mut Transport> {
        self.devices.get_mut(usize::from(number))
    }

    /// Number of the console, if there is one and its driver is there.
    fn console(&mut self) -> Option<u8> {
        let live = self.devices.iter_mut().position(|device| device.is_live() && device.console().is_some())?;
        u8::try_from(live).ok()
    }

    /// Number of the network's card, if there is one and its driver is there.
    fn net(&mut self) -> Option<u8> {
        let live = self.devices.iter_mut().position(|device| device.is_live() && device.net().is_some())?;
        u8::try_from(live).ok()
    }

    /// The card, whether or not its driver is there.
    fn card(&mut self) -> Option<&mut net::Net> {
        self.devices.iter_mut().find_map(Transport::net)
    }
}
