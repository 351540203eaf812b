//! The block device (virtio 1.3, section 5.2).

use super::chain::{self, Chain};
use super::memory::{Broken, Reach};
use super::overlay::Overlay;
use super::{CONFIG, Device, Served, Trouble, put};

/// Bytes of a sector: the disk's blocks, as in nearly every image of a disk.
pub const SECTOR: u64 = 512;
/// The overlay's pieces, as a power of two of sectors: what the driver had better write at once.
const PIECE: u8 = (super::overlay::CLUSTER as u64 / SECTOR).ilog2() as u8;
/// Bytes of a buffer, and buffers of a request, that the driver keeps to.
const SIZE_MAX: u32 = 32 << 10;
const SEG_MAX: u32 = 126;
/// Bytes of a request at the most.
pub const MAX_REQUEST: u64 = SIZE_MAX as u64 * SEG_MAX as u64;

/// SIZE_MAX, SEG_MAX, FLUSH and TOPOLOGY.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 9 | 1 << 10;
const READ_ONLY: u64 = 1 << 5;

/// Kinds of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
/// Bytes of an identification.
const ID_BYTES: usize = 20;

/// How a request ended.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Bytes of a request's head: kind, a reserved word, the first sector.
const HEAD: u64 = 16;

/// A disk.
#[derive(Debug)]
pub struct Blk {
    disk: Overlay,
    was_full: bool,
}

impl Blk {
    /// One with these contents.
    pub fn new(disk: Overlay) -> Self {
        Self { disk, was_full: false }
    }

    /// Whether `bytes` from a sector on lie on the disk, in whole sectors; the first byte.
    fn place(&self, sector: u64, bytes: u64) -> Option<u64> {
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(bytes)?;
        (end <= self.disk.bytes() && bytes.is_multiple_of(SECTOR) && bytes <= MAX_REQUEST).then_some(start)
    }

    fn read(&self, memory: &mut dyn Reach, chain: &Chain, start: u64, bytes: u64) -> Result<(), Broken> {
        let mut offset = start;
        for part in chain::parts(&chain.writable, 0, bytes) {
            let mut done = 0;
            while done < part.bytes {
                let from = self.disk.get(offset, (part.bytes - done) as usize);
                if from.is_empty() {
                    return Err(Broken::Request);
                }
                memory.write(part.gpa + u64::from(done), from)?;
                done += from.len() as u32;
                offset += from.len() as u64;
            }
        }
        Ok(())
    }

    /// Whether there was room.
    fn write(&mut self, memory: &mut dyn Reach, chain: &Chain, start: u64, bytes: u64) -> Result<bool, Broken> {
        let mut offset = start;
        for part in chain::parts(&chain.readable, HEAD, bytes) {
            let mut done = 0;
            while done < part.bytes {
                let Ok(to) = self.disk.get_mut(offset, (part.bytes - done) as usize) else { return Ok(false) };
                if to.is_empty() {
                    return Err(Broken::Request);
                }
                memory.read(part.gpa + u64::from(done), to)?;
                done += to.len() as u32;
                offset += to.len() as u64;
            }
        }
        Ok(true)
    }
}

impl Device for Blk {
    fn id(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        FEATURES | if self.disk.is_read_only() { READ_ONLY } else { 0 }
    }

    fn queues(&self) -> &'static [u16] {
        &[128]
    }

    fn config(&self) -> [u8; CONFIG] {
        let mut config = [0; CONFIG];
        put(&mut config, 0, &(self.disk.bytes() / SECTOR).to_le_bytes());
        put(&mut config, 8, &SIZE_MAX.to_le_bytes());
        put(&mut config, 12, &SEG_MAX.to_le_bytes());
        put(&mut config, 24, &[PIECE]);
        config
    }

    fn serve(&mut self, _: u16, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        let mut head = [0; HEAD as usize];
        chain.read(memory, 0, &mut head)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = head;
        let (kind, sector) = (u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(sector));
        // The last byte that the device may write takes the status.
        let data = chain::length(&chain.writable).checked_sub(1).ok_or(Broken::Request)?;
        let given = chain::length(&chain.readable).saturating_sub(HEAD);
        let mut served = Served::default();
        let (status, written) = match kind {
            IN => match self.place(sector, data) {
                Some(start) => {
                    self.read(memory, chain, start, data)?;
                    served.cost = data;
                    (OK, data)
                }
                None => (IO_ERROR, 0),
            },
            OUT => match self.place(sector, given).filter(|_| !self.disk.is_read_only()) {
                Some(start) => {
                    served.cost = given;
                    if self.write(memory, chain, start, given)? {
                        (OK, 0)
                    } else {
                        if !core::mem::replace(&mut self.was_full, true) {
                            served.trouble = Some(Trouble::DiskFull);
                        }
                        (IO_ERROR, 0)
                    }
                }
                None => (IO_ERROR, 0),
            },
            // What was written is where it will stay.
            FLUSH => (OK, 0),
            GET_ID => {
                let mut id = [0; ID_BYTES];
                put(&mut id, 0, b"caisson-disk");
                let count = ID_BYTES.min(usize::try_from(data).unwrap_or(ID_BYTES));
                chain.write(memory, 0, id.get(..count).unwrap_or_default())?;
                (OK, count as u64)
            }
            _ => (UNSUPPORTED, 0),
        };
        chain.write(memory, data, &[status])?;
        // The driver takes the number as a length from the beginning, so it says how much of the beginning is valid.
        served.written = if written == data { data as u32 + 1 } else { written as u32 };
        Ok(served)
    }
}
