//! Frames that wait for a port, oldest first.

use caisson_proto::switch::MAX_FRAME;

/// Frames that wait at the most: as many as a card's queue has buffers, halved.
pub const FRAMES: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Frame {
    length: u16,
    bytes: [u8; MAX_FRAME],
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    frames: [Frame; FRAMES],
    first: usize,
    count: usize,
}

impl Queue {
    /// An empty one.
    pub const fn new() -> Self {
        Self { frames: [Frame { length: 0, bytes: [0; MAX_FRAME] }; FRAMES], first: 0, count: 0 }
    }

    /// Puts a frame behind the others. False if there is no room, or no frame is so long.
    pub fn put(&mut self, frame: &[u8]) -> bool {
        if self.count == FRAMES {
            return false;
        }
        let Some(slot) = self.frames.get_mut((self.first + self.count) % FRAMES) else { return false };
        let Some(place) = slot.bytes.get_mut(..frame.len()) else { return false };
        place.copy_from_slice(frame);
        slot.length = frame.len() as u16;
        self.count += 1;
        true
    }

    /// The oldest.
    pub fn first(&self) -> Option<&[u8]> {
        let frame = self.frames.get(self.first).filter(|_| self.count > 0)?;
        frame.bytes.get(..frame.length.into())
    }

    /// Drops the oldest.
    pub fn drop_first(&mut self) {
        if self.count > 0 {
            (self.first, self.count) = ((self.first + 1) % FRAMES, self.count - 1);
        }
    }

    /// Drops all.
    pub fn clear(&mut self) {
        (self.first, self.count) = (0, 0);
    }
}
