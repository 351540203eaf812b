//! The serial port: a 16750, that is a 16550A whose FIFOs hold 64 bytes if the guest asks for it.
//!
//! A larger FIFO means fewer status reads and interrupts for the same text, and Linux finds it by itself
//! (TL16C750 datasheet: FCR bit 5 can be set only while DLAB is). Sending takes no time.

use alloc::collections::VecDeque;

/// First of its eight ports.
pub const BASE: u16 = 0x3f8;
/// Its interrupt.
pub const IRQ: u8 = 4;
/// Bytes received and not yet read, at the most.
const RECEIVED_MAX: usize = 64;

const IER_RECEIVED: u8 = 1 << 0;
const IER_EMPTY: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const MCR_OUT2: u8 = 1 << 3;
const LSR_READY: u8 = 1 << 0;
const LSR_EMPTY: u8 = 0x60;

/// The serial port.
#[derive(Clone, Debug, Default)]
pub struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    received: VecDeque<u8>,
    /// The transmitter ran empty and the guest wasn't told yet.
    empty_pending: bool,
    /// The console takes no more for now.
    blocked: bool,
}

impl Uart {
    /// Bytes that [`receive`](Self::receive) takes.
    pub fn room(&self) -> usize {
        RECEIVED_MAX.saturating_sub(self.received.len())
    }

    /// Takes bytes from the line; how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.room().min(bytes.len());
        self.received.extend(bytes.iter().take(taken));
        taken
    }

    /// Whether the console takes no more: the transmitter then isn't empty.
    #[inline]
    pub fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
    }

    /// The interrupt line.
    #[inline]
    pub fn line(&self) -> bool {
        let received = self.ier & IER_RECEIVED != 0 && !self.received.is_empty();
        let empty = self.tells_empty();
        // OUT2 gates the interrupt on a PC.
        (received || empty) && self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
    }

    fn tells_empty(&self) -> bool {
        self.ier & IER_EMPTY != 0 && self.empty_pending && !self.blocked
    }

    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    /// Reads register 0 to 7.
    #[inline]
    pub fn read(&mut self, register: u16) -> u8 {
        match register & 7 {
            5 => {
                let empty = if self.blocked { 0 } else { LSR_EMPTY };
                empty | if self.received.is_empty() { 0 } else { LSR_READY }
            }
            0 if self.dlab() => self.divisor[0],
            1 if self.dlab() => self.divisor[1],
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => self.identify(),
            3 => self.lcr,
            4 => self.mcr,
            6 if self.mcr & MCR_LOOP != 0 => {
                // Looped back: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
                let mcr = self.mcr;
                (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4
            }
            // Clear to send, data set ready, carrier.
            6 => 0xb0,
            _ => self.scratch,
        }
    }

    fn identify(&mut self) -> u8 {
        let fifo = match self.fcr {
            fcr if fcr & 1 == 0 => 0,
            fcr if fcr & 0x20 != 0 => 0xe0,
            _ => 0xc0,
        };
        if self.ier & IER_RECEIVED != 0 && !self.received.is_empty() {
            fifo | 4
        } else if self.tells_empty() {
            // Being told clears it.
            self.empty_pending = false;
            fifo | 2
        } else {
            fifo | 1
        }
    }

    /// Writes register 0 to 7; the byte sent, if it is one.
    #[inline]
    pub fn write(&mut self, register: u16, value: u8) -> Option<u8> {
        match register & 7 {
            0 if self.dlab() => self.divisor[0] = value,
            1 if self.dlab() => self.divisor[1] = value,
            0 if self.mcr & MCR_LOOP != 0 => {
                self.receive(&[value]);
                self.empty_pending = true;
            }
            0 => {
                self.empty_pending = true;
                return Some(value);
            }
            1 => {
                // Asking to be told when it is empty, while it is, tells at once.
                if value & IER_EMPTY != 0 && self.ier & IER_EMPTY == 0 {
                    self.empty_pending = true;
                }
                self.ier = value & 0x0f;
            }
            2 => {
                let wide = if self.dlab() { value & 0x20 } else { self.fcr & value & 0x20 };
                if value & 2 != 0 || (value ^ self.fcr) & 1 != 0 {
                    self.received.clear();
                }
                self.fcr = value & 0xc9 | wide;
            }
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }
}
