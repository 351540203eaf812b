//! The console (virtio 1.3, section 5.3): one port, whose bytes go where the serial port's go.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::chain::{self, Chain};
use super::memory::{Broken, Reach};
use super::{CONFIG, Device, Served};

/// The queue with buffers for input.
pub const RECEIVE: u16 = 0;
/// The queue with output.
pub const TRANSMIT: u16 = 1;
/// Bytes that wait for the driver at the most.
const INPUT: usize = 4096;
/// Bytes of a request that are sent at the most: a driver sends pages.
const LONGEST: u64 = 16 << 10;
/// Bytes of output that are taken before they must be fetched.
const OUTPUT: usize = 32 << 10;

/// A console.
#[derive(Debug, Default)]
pub struct Console {
    input: VecDeque<u8>,
    output: Vec<u8>,
    is_blocked: bool,
}

impl Console {
    /// Takes bytes for the driver; how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.input.extend(bytes.iter().take(taken));
        taken
    }

    /// Bytes that [`receive`](Self::receive) takes.
    pub fn room(&self) -> usize {
        INPUT.saturating_sub(self.input.len())
    }

    /// What the guest wrote since.
    pub fn fetch(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.output)
    }

    /// Whether the guest is to wait with what it writes.
    pub fn block(&mut self, is_blocked: bool) {
        self.is_blocked = is_blocked;
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        3
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self) -> [u8; CONFIG] {
        [0; CONFIG]
    }

    fn reset(&mut self) {
        self.input.clear();
    }

    fn wants(&self, queue: u16) -> bool {
        match queue {
            RECEIVE => !self.input.is_empty(),
            _ => !self.is_blocked && self.output.len() < OUTPUT,
        }
    }

    fn serve(&mut self, queue: u16, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        let mut served = Served::default();
        if queue == TRANSMIT {
            let bytes = chain::length(&chain.readable);
            if bytes > LONGEST {
                return Err(Broken::Request);
            }
            let start = self.output.len();
            self.output.resize(start + bytes as usize, 0);
            chain.read(memory, 0, self.output.get_mut(start..).unwrap_or_default())?;
            served.cost = bytes;
        } else {
            let room = usize::try_from(chain::length(&chain.writable)).unwrap_or(usize::MAX);
            let bytes: Vec<u8> = self.input.drain(..room.min(self.input.len())).collect();
            chain.write(memory, 0, &bytes)?;
            served.written = bytes.len() as u32;
        }
        Ok(served)
    }

    fn console(&mut self) -> Option<&mut Console> {
        Some(self)
    }
}
