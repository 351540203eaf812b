//! Output of all channels onto one line.
//!
//! Each channel has a backlog of its own and a turn of at most [`TURN`] bytes, so that a guest that floods its
//! console delays another's line by one turn of each channel and no more.

use caisson_proto::console::{CHANNEL_0, ESCAPE, MAX_CHANNELS};
use heapless::Deque;

/// Bytes that a channel keeps.
pub const BACKLOG: usize = 1024;
/// Bytes that a channel sends before another that has some is served.
pub const TURN: usize = 256;

/// Backlogs, and whose turn it is.
#[derive(Debug)]
pub struct Mux {
    backlog: [Deque<u8, BACKLOG>; MAX_CHANNELS],
    current: usize,
    /// Bytes that the current channel may still send.
    left: usize,
    /// What must be sent before the next byte of the backlog: the rest of an escape sequence.
    pending: Deque<u8, 4>,
    /// Whether the other end knows the current channel.
    announced: bool,
}

impl Mux {
    /// Empty, and the other end knows of no channel.
    pub const fn new() -> Self {
        Self {
            backlog: [const { Deque::new() }; MAX_CHANNELS],
            current: 0,
            left: TURN,
            pending: Deque::new(),
            announced: false,
        }
    }

    /// Bytes that the channel takes now; none if there is no such channel.
    pub fn room(&self, channel: usize) -> usize {
        self.backlog.get(channel).map_or(0, |backlog| BACKLOG - backlog.len())
    }

    /// Keeps what fits of `bytes` and returns how many don't.
    pub fn put(&mut self, channel: usize, bytes: &[u8]) -> usize {
        let Some(backlog) = self.backlog.get_mut(channel) else { return bytes.len() };
        let taken = bytes.iter().take_while(|&&byte| backlog.push_back(byte).is_ok()).count();
        bytes.len() - taken
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.backlog.iter().all(Deque::is_empty)
    }

    /// The next byte for the line.
    pub fn next_byte(&mut self) -> Option<u8> {
        if let Some(byte) = self.pending.pop_front() {
            return Some(byte);
        }
        let nothing_here = self.backlog.get(self.current).is_none_or(Deque::is_empty);
        if nothing_here || self.left == 0 {
            self.turn()?;
        }
        if !self.announced {
            self.announced = true;
            self.follow(CHANNEL_0 + self.current as u8);
            return Some(ESCAPE);
        }
        let byte = self.backlog.get_mut(self.current)?.pop_front()?;
        self.left = self.left.saturating_sub(1);
        if byte == ESCAPE {
            self.follow(ESCAPE);
        }
        Some(byte)
    }

    /// Gives the turn to the next channel that has something, perhaps the same.
    fn turn(&mut self) -> Option<()> {
        let next = (1..=MAX_CHANNELS)
            .map(|step| (self.current + step) % MAX_CHANNELS)
            .find(|&channel| self.backlog.get(channel).is_some_and(|backlog| !backlog.is_empty()))?;
        if next != self.current {
            self.current = next;
            self.announced = false;
        }
        self.left = TURN;
        Some(())
    }

    fn follow(&mut self, byte: u8) {
        // `pending` is empty whenever a byte is appended: at most one follows each.
        let _ = self.pending.push_back(byte);
    }
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}
