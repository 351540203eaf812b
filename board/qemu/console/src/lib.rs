//! console: guests' consoles on a serial line, logs on a port of their own.
//!
//! Nothing is lost silently. Outward a channel whose backlog is full isn't read any further, so that its ring
//! fills and the guest's serial port waits; inward, and for logs, what can't be kept is counted and told.
//! [`Console`] holds the state; the ports are behind a trait, so all of it runs on the host.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

pub mod input;
pub mod mux;
pub mod orders;
pub mod report;
pub mod uart;

use caisson_proto::console::LOG_MAGIC;
use caisson_proto::ring::SLOT_BYTES;
use caisson_proto::supervisor::Notice;
use zerocopy::{FromBytes, IntoBytes};

use input::Input;
use mux::Mux;
use report::Report;
use uart::{Received, Uart};

/// I/O ports.
pub trait Port {
    /// Reads a byte.
    fn inb(&mut self, port: u16) -> u8;
    /// Writes a byte.
    fn outb(&mut self, port: u16, value: u8);
}

/// QEMU's isa-debugcon: takes every byte without waiting.
pub const LOG_PORT: u16 = 0xe9;
/// Characters of a notice on the wire: its bytes in hex and the end of the line.
const NOTICE_LINE: usize = size_of::<Notice>() * 2 + 1;

/// The service's state.
#[derive(Debug)]
pub struct Console {
    uart: Uart,
    mux: Mux,
    input: Input,
}

impl Console {
    /// A console that hasn't touched its UART yet.
    pub const fn new() -> Self {
        Self { uart: Uart::new(), mux: Mux::new(), input: Input::new() }
    }

    /// Sets the UART up. `again`: this console had a predecessor, so which channel the person or program at the
    /// other end writes to isn't known; input is discarded until they name one.
    pub fn start(&mut self, port: &mut impl Port, again: bool) {
        if again {
            self.input.forget_channel();
        }
        self.uart.start(port);
    }

    /// Whether the channel takes one more slot of a ring.
    pub fn takes_slot(&self, channel: usize) -> bool {
        self.mux.room(channel) >= SLOT_BYTES
    }

    /// Whether the system channel takes one more notice.
    pub fn takes_notice(&self) -> bool {
        self.mux.room(0) >= NOTICE_LINE
    }

    /// Bytes of a guest's console, outward. Returns how many weren't taken; 0 if [`takes_slot`](Self::takes_slot).
    pub fn output(&mut self, channel: usize, bytes: &[u8]) -> usize {
        self.mux.put(channel, bytes)
    }

    /// A message of the ring of notices. False if it is none, or if there was no room.
    pub fn notice(&mut self, message: &[u8]) -> bool {
        let Ok(notice) = Notice::read_from_bytes(message) else { return false };
        let mut line = [b'\n'; NOTICE_LINE];
        for (pair, byte) in line.chunks_exact_mut(2).zip(notice.as_bytes()) {
            pair.copy_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
        }
        self.takes_notice() && self.mux.put(0, &line) == 0
    }

    /// Goes on with an answer to whoever reads statistics, as far as there is room. True if it is complete.
    pub fn report(&mut self, report: &mut Report, load: impl Fn(usize) -> u64) -> bool {
        while self.mux.room(0) >= report::LINE {
            let Some(line) = report.next(&load) else { return true };
            self.mux.put(0, &line);
        }
        false
    }

    /// Sends what the UART takes now. True if nothing is left.
    pub fn transmit(&mut self, port: &mut impl Port) -> bool {
        self.uart.transmit(port, &mut self.mux)
    }

    /// Takes in what the UART received and acknowledges its interrupts.
    pub fn receive(&mut self, port: &mut impl Port) -> Received {
        let input = &mut self.input;
        self.uart.receive(port, |byte| input.feed(byte))
    }

    /// Input of the channels, to be passed on.
    pub fn input(&mut self) -> &mut Input {
        &mut self.input
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// Sends one frame of a log, of the service in `slot`, to the log device.
pub fn log_frame(port: &mut impl Port, slot: u8, frame: &[u8]) {
    let Ok(length) = u16::try_from(frame.len()) else { return };
    let [low, high] = length.to_le_bytes();
    let header = [LOG_MAGIC, slot, low, high];
    for &byte in header.iter().chain(frame) {
        port.outb(LOG_PORT, byte);
    }
}

const fn hex(digit: u8) -> u8 {
    match digit {
        0..=9 => b'0' + digit,
        _ => b'a' + (digit - 10),
    }
}

#[cfg(test)]
mod tests;
