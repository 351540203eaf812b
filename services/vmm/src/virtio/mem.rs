//! Memory that is plugged and unplugged (virtio 1.3, section 5.15): the host says how much of it the guest is to have, and the
//! driver asks for blocks or gives them back until it has that.
//!
//! Which blocks are plugged, [`Plugged`](crate::plugged::Plugged) knows; the device asks for it by its [`Reach`].

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use caisson_proto::console::Knob;
use caisson_proto::stats::VmStat;

use super::chain::Chain;
use super::memory::{Broken, Reach};
use super::{CONFIG, Device, Served, Trouble, put};
use crate::need::Told;
use crate::plugged::BLOCK;

/// The driver knows that it can't read what isn't plugged.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Bytes of a request and of a response.
const REQUEST: usize = 24;
const RESPONSE: usize = 10;

/// Kinds of requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// How a request ended: done; not now, for what the host wants has changed; not now, for the host can't; it is none.
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// What [`STATE`] tells.
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// What plugging or unplugging a block costs, in bytes that could be copied meanwhile.
const CALL: u64 = 64 << 10;

/// Blocks that one request unplugs at the most: each costs calls, and a request is done at one access. It is a memory block of
/// Linux's, 128 MiB, and no request of its to unplug some is for more.
pub const MOST: u64 = 64;

/// The device.
#[derive(Debug)]
pub struct Mem {
    region: Range<u64>,
    /// Bytes that the guest is to have.
    wanted: u64,
    /// Bytes that are plugged.
    plugged: u64,
    /// memory had none to promise when it was last asked.
    refused: bool,
    /// The log was told of a refusal.
    told: bool,
}

impl Mem {
    /// A region, of which the guest is to have so many bytes.
    pub fn new(region: Range<u64>, wanted: u64) -> Self {
        Self { region, wanted, plugged: 0, refused: false, told: false }
    }

    fn plug(&mut self, memory: &mut dyn Reach, gpa: u64, bytes: u64, served: &mut Served) -> u16 {
        if self.plugged.saturating_add(bytes) > self.wanted {
            return NACK;
        }
        match memory.plug(gpa, bytes) {
            Ok(()) => {
                self.plugged += bytes;
                self.refused = false;
                ACK
            }
            Err(status) => {
                self.refused = true;
                if !core::mem::replace(&mut self.told, true) {
                    served.trouble = Some(Trouble::NotPlugged(status));
                }
                BUSY
            }
        }
    }

    fn unplug(&mut self, memory: &mut dyn Reach, gpa: u64, bytes: u64, served: &mut Served) -> u16 {
        match memory.unplug(gpa, bytes) {
            Ok(()) => {
                self.plugged = self.plugged.saturating_sub(bytes);
                ACK
            }
            Err(status) => {
                if !core::mem::replace(&mut self.told, true) {
                    served.trouble = Some(Trouble::NotReleased(status));
                }
                BUSY
            }
        }
    }

    /// Every block that is plugged; or the first of them, with the driver to ask again for the others at once.
    fn unplug_all(&mut self, memory: &mut dyn Reach, served: &mut Served) -> u16 {
        let (mut gpa, mut left) = (self.region.start, MOST);
        while gpa < self.region.end && self.plugged > 0 {
            if memory.plugged(gpa, BLOCK) == Some((1, 1)) {
                if left == 0 {
                    served.changed = true;
                    return BUSY;
                }
                left -= 1;
                served.cost += CALL;
                let answer = self.unplug(memory, gpa, BLOCK, served);
                if answer != ACK {
                    return answer;
                }
            }
            gpa += BLOCK;
        }
        ACK
    }

    /// The answer to a request of this kind about so many blocks from an address on, and what [`STATE`] tells.
    fn answer(&mut self, kind: u16, gpa: u64, blocks: u16, memory: &mut dyn Reach, served: &mut Served) -> (u16, u16) {
        if kind == UNPLUG_ALL {
            return (self.unplug_all(memory, served), 0);
        }
        let bytes = u64::from(blocks) * BLOCK;
        let is_whole = bytes > 0 && gpa.is_multiple_of(BLOCK);
        let Some((plugged, all)) = memory.plugged(gpa, bytes).filter(|_| is_whole) else { return (ERROR, 0) };
        match kind {
            PLUG if plugged == 0 => {
                served.cost += CALL;
                (self.plug(memory, gpa, bytes, served), 0)
            }
            UNPLUG if plugged == all && all > MOST => (BUSY, 0),
            UNPLUG if plugged == all => {
                served.cost += CALL * all;
                (self.unplug(memory, gpa, bytes, served), 0)
            }
            STATE if plugged == all => (ACK, PLUGGED),
            STATE if plugged == 0 => (ACK, UNPLUGGED),
            STATE => (ACK, MIXED),
            _ => (ERROR, 0),
        }
    }
}

impl Device for Mem {
    fn id(&self) -> u32 {
        24
    }

    fn features(&self) -> u64 {
        UNPLUGGED_INACCESSIBLE
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> [u8; CONFIG] {
        let mut config = [0; CONFIG];
        let bytes = self.region.end - self.region.start;
        // All of the region is usable; bytes 8 to 15 are a node of memory, which isn't offered.
        let values =
            [(0, BLOCK), (16, self.region.start), (24, bytes), (32, bytes), (40, self.plugged), (48, self.wanted)];
        for (at, value) in values {
            put(&mut config, at, &value.to_le_bytes());
        }
        config
    }

    fn resize(&mut self, knob: Knob, bytes: u64) -> bool {
        let fits = bytes <= self.region.end - self.region.start && bytes.is_multiple_of(BLOCK);
        if knob != Knob::Plugged || !fits {
            return false;
        }
        self.wanted = bytes;
        true
    }

    fn follow(&mut self, told: &Told) -> bool {
        // A driver that was told to wait tries again when something changes, and else only after a minute.
        told.spare > 0 && self.plugged < self.wanted && core::mem::take(&mut self.refused)
    }

    fn known(&self) -> Vec<(VmStat, u64)> {
        let most = self.region.end - self.region.start;
        vec![(VmStat::Plugged, self.plugged), (VmStat::PlugWanted, self.wanted), (VmStat::PlugMost, most)]
    }

    fn serve(&mut self, _: u16, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        let mut request = [0; REQUEST];
        chain.read(memory, 0, &mut request)?;
        let [k0, k1, _, _, _, _, _, _, gpa @ .., b0, b1, _, _, _, _, _, _] = request;
        let (kind, blocks) = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([b0, b1]));
        let mut served = Served { written: RESPONSE as u32, ..Served::default() };
        if super::chain::length(&chain.writable) < RESPONSE as u64 {
            return Err(Broken::Request);
        }
        let (answer, state) = self.answer(kind, u64::from_le_bytes(gpa), blocks, memory, &mut served);
        let mut response = [0; RESPONSE];
        put(&mut response, 0, &answer.to_le_bytes());
        put(&mut response, 8, &state.to_le_bytes());
        chain.write(memory, 0, &response)?;
        Ok(served)
    }
}
