//! The network's card (virtio 1.3, section 5.1): one pair of queues, an address, no offloads.
//!
//! Frames go out and come in as batches of the [switch](caisson_proto::switch): what a driver sends is gathered in one, and one
//! that came is handed out as far as there are buffers.

use alloc::boxed::Box;

use caisson_proto::switch::{AREA, Area, MAX_FRAME, Mac, begin, count, is_length, split};

use super::chain::{self, Chain};
use super::memory::{Broken, Reach};
use super::{CONFIG, Device, Served, put};

/// The queue with buffers for frames that come.
pub const RECEIVE: u16 = 0;
/// The queue with frames to be sent.
pub const TRANSMIT: u16 = 1;
/// It has an address of its own.
const MAC: u64 = 1 << 5;
/// Bytes before each frame in a buffer: flags, kind of segmentation, offsets that mean nothing here, how many buffers (section
/// 5.1.6).
const HEADER: usize = 12;
const NEEDS_CHECKSUM: u8 = 1;
/// Before a frame that came: it is in one buffer.
const RECEIVED: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// What passed, in frames and their bytes, header not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent by the driver.
    pub sent: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Of those sent, how many went nowhere: too short, too long, or dropped by the switch.
    pub lost: u64,
    /// Given to the driver.
    pub received: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// That came and for which the driver's buffer was too short.
    pub cut: u64,
}

/// A card.
#[derive(Debug)]
pub struct Net {
    mac: Mac,
    output: Box<Area>,
    /// Bytes of the batch to be sent.
    gathered: usize,
    input: Box<Area>,
    /// Of the batch that came, where the next frame begins, and the end.
    given: usize,
    came: usize,
    /// More may wait at the switch.
    expects: bool,
    counts: Counts,
}

impl Net {
    /// One with this address. Whether frames wait for it isn't known yet.
    pub fn new(mac: Mac) -> Self {
        let (output, input) = (Box::new(Area::zeroed()), Box::new(Area::zeroed()));
        Self { mac, output, gathered: 0, input, given: 0, came: 0, expects: true, counts: Counts::default() }
    }

    /// What passed.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Frames may wait at the switch.
    pub fn expect(&mut self) {
        self.expects = true;
    }

    /// Whether a batch is to be fetched: all of the last one was given to the driver.
    pub fn is_hungry(&self) -> bool {
        self.expects && self.given == self.came
    }

    /// Has the batch sent that was gathered, by what says how many frames of it were dropped; whether there was one.
    pub fn send(&mut self, by: impl FnOnce(&Area, usize) -> Option<u64>) -> bool {
        let bytes = core::mem::take(&mut self.gathered);
        if bytes == 0 {
            return false;
        }
        let frames = self.output.0.get(..bytes).and_then(count).unwrap_or(0);
        self.counts.lost += by(&self.output, bytes).unwrap_or(frames).min(frames);
        true
    }

    /// Takes a batch from what fetches it: its bytes, and whether there are more. One that is none is dropped.
    pub fn fetch(&mut self, from: impl FnOnce(&mut Area) -> Option<(usize, bool)>) {
        let (bytes, more) = from(&mut self.input).unwrap_or((0, false));
        let is_sound = self.input.0.get(..bytes).is_some_and(|batch| count(batch).is_some());
        (self.given, self.came) = (0, if is_sound { bytes } else { 0 });
        // Who says that there is more and gives nothing isn't asked again before it rings.
        self.expects = more && self.came > 0;
    }

    /// Takes a frame of the driver's; what is no frame is lost.
    fn transmit(&mut self, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        let bytes = chain::length(&chain.readable).checked_sub(HEADER as u64).ok_or(Broken::Request)?;
        let mut header = [0; HEADER];
        chain.read(memory, 0, &mut header)?;
        let [flags, segmentation, ..] = header;
        if flags & NEEDS_CHECKSUM != 0 || segmentation != 0 {
            return Err(Broken::Offload);
        }
        let mut served = Served::default();
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        match begin(&mut self.output.0, self.gathered, length) {
            Some((place, end)) => {
                chain.read(memory, HEADER as u64, place)?;
                self.gathered = end;
                self.counts.sent_bytes += bytes;
                served.cost = bytes;
            }
            // There is room for the longest, so it is none.
            None => self.counts.lost += 1,
        }
        self.counts.sent += 1;
        Ok(served)
    }

    /// Gives the driver the next frame; one that its buffer is too short for is lost, and the buffer comes back empty.
    fn receive(&mut self, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        let mut served = Served::default();
        let waiting = self.input.0.get(self.given..self.came).unwrap_or_default();
        let Some((frame, rest)) = split(waiting) else {
            self.given = self.came;
            return Ok(served);
        };
        self.given = self.came - rest.len();
        let bytes = HEADER + frame.len();
        if chain::length(&chain.writable) < bytes as u64 {
            self.counts.cut += 1;
            return Ok(served);
        }
        chain.write(memory, 0, &RECEIVED)?;
        chain.write(memory, HEADER as u64, frame)?;
        self.counts.received += 1;
        self.counts.received_bytes += frame.len() as u64;
        (served.written, served.cost) = (bytes as u32, bytes as u64);
        Ok(served)
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        MAC
    }

    fn queues(&self) -> &'static [u16] {
        &[128, 128]
    }

    fn config(&self) -> [u8; CONFIG] {
        let mut config = [0; CONFIG];
        put(&mut config, 0, &self.mac);
        config
    }

    fn reset(&mut self) {
        // What was gathered before a request that broke the card isn't sent.
        self.counts.lost += self.output.0.get(..self.gathered).and_then(count).unwrap_or(0);
        (self.gathered, self.given, self.came) = (0, 0, 0);
        self.expects = true;
    }

    fn wants(&self, queue: u16) -> bool {
        match queue {
            RECEIVE => self.given < self.came,
            _ => self.gathered + size_of::<u16>() + MAX_FRAME <= AREA,
        }
    }

    fn serve(&mut self, queue: u16, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        if queue == TRANSMIT { self.transmit(chain, memory) } else { self.receive(chain, memory) }
    }

    fn net(&mut self) -> Option<&mut Net> {
        Some(self)
    }
}

const _: () = assert!(is_length(MAX_FRAME) && AREA > 2 * MAX_FRAME);
