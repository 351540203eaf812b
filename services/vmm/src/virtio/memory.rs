//! Guest memory as a device reaches it.
//!
//! The guest's other vCPUs can write it at any time. So a value is copied out once, and only the copy is looked at.

use core::fmt;

use caisson_proto::abi::Status;

use crate::platform::Platform;
use crate::ram::{NoMemory, Ram};

/// What is wrong with a queue or a request. The device does nothing more until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The queue's size isn't a power of two, or larger than the device allows.
    Size,
    /// A part of the queue isn't aligned, or doesn't lie in guest memory as a whole.
    Place,
    /// The available ring's index is further ahead than the queue is long.
    Index,
    /// A descriptor's number is beyond the queue's end.
    Descriptor,
    /// A chain is longer than the queue, so it is a circle.
    Circle,
    /// A part that the device reads follows one that it writes.
    Order,
    /// An indirect table, which isn't offered.
    Indirect,
    /// A buffer doesn't lie in guest memory as a whole, or a chain has 4 GiB or more.
    Buffer,
    /// The request is too short, or lacks a part that it must have.
    Request,
    /// A frame wants an offload, which isn't offered.
    Offload,
    /// Memory couldn't be had.
    Memory,
}

impl Broken {
    /// The reason in a few words.
    pub fn why(self) -> &'static str {
        match self {
            Self::Size => "its queue has an impossible size",
            Self::Place => "its queue is outside memory or not aligned",
            Self::Index => "its available ring runs ahead",
            Self::Descriptor => "a descriptor is beyond the queue",
            Self::Circle => "a chain is a circle",
            Self::Order => "a chain reads after it writes",
            Self::Indirect => "an indirect table was not offered",
            Self::Buffer => "a buffer is outside memory",
            Self::Request => "a request lacks a part",
            Self::Offload => "a frame wants an offload that was not offered",
            Self::Memory => "there is no memory for its queue or buffer",
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

/// Guest memory.
pub trait Reach {
    /// Whether all of these bytes are guest memory.
    fn contains(&self, gpa: u64, bytes: u64) -> bool;

    /// Copies out.
    ///
    /// # Errors
    /// [`Broken::Memory`] if it isn't there or can't be had.
    fn read(&mut self, gpa: u64, into: &mut [u8]) -> Result<(), Broken>;

    /// Copies in.
    ///
    /// # Errors
    /// [`Broken::Memory`] if it isn't there or can't be had.
    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), Broken>;

    /// Gives pages of 4 KiB back: what was in them is lost, and the next access finds zeros.
    ///
    /// # Errors
    /// `Range` for what isn't all guest memory; or memory's own answer. Some of the pages may be gone then.
    fn release(&mut self, gfn: u64, pages: u64) -> Result<(), Status>;

    /// Of the [blocks](crate::plugged) that these bytes touch, how many are plugged, and how many there are; `None` outside their
    /// region.
    fn plugged(&self, _gpa: u64, _bytes: u64) -> Option<(u64, u64)> {
        None
    }

    /// Plugs blocks, none of which is plugged.
    ///
    /// # Errors
    /// As [`Ram::plug`].
    fn plug(&mut self, _gpa: u64, _bytes: u64) -> Result<(), Status> {
        Err(Status::Range)
    }

    /// Unplugs blocks, all of which are plugged.
    ///
    /// # Errors
    /// As [`Ram::unplug`].
    fn unplug(&mut self, _gpa: u64, _bytes: u64) -> Result<(), Status> {
        Err(Status::Range)
    }
}

/// Copies a little-endian number of 16 bits out.
pub(super) fn read_u16(memory: &mut dyn Reach, gpa: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    memory.read(gpa, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

/// A VM's memory.
pub(crate) struct Guest<'a, P> {
    /// Which of it is backed.
    pub ram: &'a mut Ram,
    /// What it lies in.
    pub platform: &'a mut P,
    /// The machine's ticks in a millisecond.
    pub khz: u64,
    /// Until when devices wait for pages that memory hasn't, once one had to in this activation of the vmm.
    pub until: Option<u64>,
}

/// How long devices wait for pages that memory hasn't, in milliseconds of one activation of the vmm, however many pages these
/// are. A vCPU can be parked, a device can't; and a vmm that doesn't end its activation in time is ended itself.
pub const DEVICE_MS: u64 = 1000;

impl<P: Platform> Guest<'_, P> {
    /// Does something with guest memory, and again while others may give some back.
    fn patiently(&mut self, mut act: impl FnMut(&mut Ram, &mut P) -> Result<(), NoMemory>) -> Result<(), Broken> {
        loop {
            // The time is kept here, not in each call.
            self.platform.hurry(true);
            let result = act(self.ram, self.platform);
            self.platform.hurry(false);
            match result {
                Ok(()) => return Ok(()),
                // There may be some soon, or memory is being started again.
                Err(NoMemory {
                    refused: Some(Status::Exhausted | Status::Busy | Status::Dead | Status::Died), ..
                }) => {}
                Err(_) => return Err(Broken::Memory),
            }
            let now = self.platform.now();
            let until = *self.until.get_or_insert(now.saturating_add(DEVICE_MS.saturating_mul(self.khz)));
            if now >= until {
                return Err(Broken::Memory);
            }
            self.platform.pause();
        }
    }
}

impl<P: Platform> Reach for Guest<'_, P> {
    fn contains(&self, gpa: u64, bytes: u64) -> bool {
        self.ram.is_whole(gpa, bytes)
    }

    fn read(&mut self, gpa: u64, into: &mut [u8]) -> Result<(), Broken> {
        self.patiently(|ram, platform| ram.read(platform, gpa, into))
    }

    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), Broken> {
        self.patiently(|ram, platform| ram.write(platform, gpa, from))
    }

    fn release(&mut self, gfn: u64, pages: u64) -> Result<(), Status> {
        self.ram.release(self.platform, gfn, pages)
    }

    fn plugged(&self, gpa: u64, bytes: u64) -> Option<(u64, u64)> {
        self.ram.plugged().count(gpa, bytes)
    }

    fn plug(&mut self, gpa: u64, bytes: u64) -> Result<(), Status> {
        self.ram.plug(self.platform, gpa, bytes)
    }

    fn unplug(&mut self, gpa: u64, bytes: u64) -> Result<(), Status> {
        self.ram.unplug(self.platform, gpa, bytes)
    }
}
