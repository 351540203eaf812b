//! Bytes on their way from the serial port to the console: sent in lines, not one by one.

use alloc::vec::Vec;

use crate::platform::Platform;

/// Bytes that wait before the port tells the guest to wait too.
const HIGH_WATER: usize = 4096;
/// Bytes that wait at the most. A guest that doesn't heed the port loses the rest.
const LIMIT: usize = 65_536;
/// Bytes that are sent without waiting for the end of the line: what a ring's slot carries.
const SLOT: usize = caisson_proto::ring::SLOT_BYTES;

/// The buffer.
#[derive(Debug, Default)]
pub struct Output {
    waiting: Vec<u8>,
    /// The console took less than it was given last time.
    full: bool,
}

impl Output {
    /// Takes a byte from the serial port.
    #[inline]
    pub fn push(&mut self, platform: &mut impl Platform, byte: u8) {
        if self.waiting.len() < LIMIT {
            self.waiting.push(byte);
        }
        if !self.full && (byte == b'\n' || self.waiting.len() >= SLOT) {
            self.flush(platform);
        }
    }

    /// Sends what waits, as far as it is taken.
    pub fn flush(&mut self, platform: &mut impl Platform) {
        if self.waiting.is_empty() {
            return;
        }
        let taken = platform.console_out(&self.waiting).min(self.waiting.len());
        self.waiting.drain(..taken);
        self.full = !self.waiting.is_empty();
    }

    /// Whether the guest should wait.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        self.waiting.len() >= HIGH_WATER
    }
}
