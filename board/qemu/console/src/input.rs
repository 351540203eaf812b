//! Input from one line to the channels.

use caisson_proto::console::{CHANNEL_0, ESCAPE, MAX_CHANNELS};
use heapless::Deque;

use crate::orders::Orders;
use crate::report::Requests;

/// Bytes of input that a channel keeps while its guest doesn't read.
pub const BACKLOG: usize = 1024;

/// The parser and the channels' backlogs.
#[derive(Debug)]
pub struct Input {
    backlog: [Deque<u8, BACKLOG>; MAX_CHANNELS],
    /// `None`: not known, so bytes are discarded.
    current: Option<usize>,
    escaped: bool,
    lost: u32,
    requests: Requests,
    orders: Orders,
}

impl Input {
    /// Empty; until a channel is named, input is the first guest's.
    pub const fn new() -> Self {
        let backlog = [const { Deque::new() }; MAX_CHANNELS];
        Self { backlog, current: Some(1), escaped: false, lost: 0, requests: Requests::new(), orders: Orders::new() }
    }

    /// Discards input until a channel is named.
    pub fn forget_channel(&mut self) {
        self.current = None;
    }

    /// A byte from the line.
    pub fn feed(&mut self, byte: u8) {
        if !self.escaped {
            match byte {
                ESCAPE => self.escaped = true,
                byte => self.keep(byte),
            }
            return;
        }
        self.escaped = false;
        match byte {
            ESCAPE => self.keep(ESCAPE),
            digit => match usize::from(digit.wrapping_sub(CHANNEL_0)) {
                channel if channel < MAX_CHANNELS => self.current = Some(channel),
                _ => self.lose(),
            },
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.current == Some(0) {
            if !self.orders.feed(byte) && !self.requests.feed(byte) {
                self.lose();
            }
            return;
        }
        let backlog = self.current.and_then(|channel| self.backlog.get_mut(channel));
        if backlog.is_none_or(|backlog| backlog.push_back(byte).is_err()) {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.lost = self.lost.saturating_add(1);
    }

    /// Bytes discarded since this was last asked.
    pub fn take_lost(&mut self) -> u32 {
        core::mem::take(&mut self.lost)
    }

    /// The channel of a VM whose statistics were asked for.
    pub fn take_request(&mut self) -> Option<usize> {
        self.requests.take()
    }

    /// What was ordered of VMs' memory.
    pub fn orders(&mut self) -> &mut Orders {
        &mut self.orders
    }

    /// Copies the beginning of a channel's input to `buffer` and says how many bytes; they stay.
    pub fn peek(&self, channel: usize, buffer: &mut [u8]) -> usize {
        let Some(backlog) = self.backlog.get(channel) else { return 0 };
        buffer.iter_mut().zip(backlog).map(|(place, &byte)| *place = byte).count()
    }

    /// Removes that many bytes from the beginning of a channel's input.
    pub fn consume(&mut self, channel: usize, bytes: usize) {
        let Some(backlog) = self.backlog.get_mut(channel) else { return };
        for _ in 0..bytes {
            backlog.pop_front();
        }
    }
}

impl Default for Input {
    fn default() -> Self {
        Self::new()
    }
}
