//! The serial port: a 16550 (National Semiconductor PC16550D data sheet, section 8).

use crate::Port;
use crate::mux::Mux;

/// COM1.
pub const BASE: u16 = 0x3f8;

/// Receiver buffer when read, transmitter holding when written; low divisor byte while `LCR` has [`DIVISOR`].
pub const DATA: u16 = BASE;
/// Interrupt enable; high divisor byte while `LCR` has [`DIVISOR`].
pub const IER: u16 = BASE + 1;
/// Interrupt identification when read, FIFO control when written.
pub const IIR: u16 = BASE + 2;
/// Line control.
pub const LCR: u16 = BASE + 3;
/// Modem control.
pub const MCR: u16 = BASE + 4;
/// Line status.
pub const LSR: u16 = BASE + 5;
/// Modem status.
pub const MSR: u16 = BASE + 6;

/// LCR: the divisor is addressed.
pub const DIVISOR: u8 = 0x80;
const EIGHT_BITS: u8 = 0x03;
/// FIFOs on and emptied; an interrupt for each byte received.
const FIFO_ON: u8 = 0x07;
/// DTR, RTS, and OUT2, which lets the interrupt out of the chip on a PC.
const READY: u8 = 0x0b;
/// IER: data received.
pub const ON_DATA: u8 = 0x01;
/// IER: transmitter empty.
pub const ON_EMPTY: u8 = 0x02;
/// LSR: data ready.
pub const LSR_DATA: u8 = 0x01;
/// LSR: transmitter holding register, or its FIFO, empty.
pub const LSR_EMPTY: u8 = 0x20;
/// IIR: nothing is pending.
const NONE_PENDING: u8 = 0x01;

/// Bytes that the transmit FIFO takes when it is empty.
const FIFO: usize = 16;
/// Bytes taken in at once at the most: what a line at full speed can't outrun for long.
const RECEIVE_LIMIT: usize = 1024;
/// FIFOs filled at once at the most. With the limit above it bounds the time of one activation.
const TRANSMIT_LIMIT: usize = 256;
/// Interrupt causes looked at in one go.
const CAUSES: usize = 8;

/// How receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The receiver is empty.
    All,
    /// There may be more: come again.
    More,
}

/// What the driver remembers.
#[derive(Debug)]
pub struct Uart {
    enabled: u8,
}

impl Uart {
    /// Not set up yet.
    pub const fn new() -> Self {
        Self { enabled: 0 }
    }

    /// Brings the chip from any state to 115200 baud, 8 bits, FIFOs on, interrupts on data received.
    pub fn start(&mut self, port: &mut impl Port) {
        port.outb(IER, 0);
        port.outb(LCR, DIVISOR);
        port.outb(DATA, 1);
        port.outb(IER, 0);
        port.outb(LCR, EIGHT_BITS);
        port.outb(IIR, FIFO_ON);
        port.outb(MCR, READY);
        self.enabled = 0;
        self.enable(port, ON_DATA);
    }

    fn enable(&mut self, port: &mut impl Port, interrupts: u8) {
        if self.enabled != interrupts {
            self.enabled = interrupts;
            port.outb(IER, interrupts);
        }
    }

    /// Sends from `mux` while the chip takes bytes. True if nothing is left; else the chip interrupts when it can
    /// go on, or the caller comes again.
    pub fn transmit(&mut self, port: &mut impl Port, mux: &mut Mux) -> bool {
        for _ in 0..TRANSMIT_LIMIT {
            if mux.is_empty() {
                self.enable(port, ON_DATA);
                return true;
            }
            if port.inb(LSR) & LSR_EMPTY == 0 {
                break;
            }
            for byte in core::iter::from_fn(|| mux.next_byte()).take(FIFO) {
                port.outb(DATA, byte);
            }
        }
        self.enable(port, ON_DATA | ON_EMPTY);
        false
    }

    /// Gives every byte received to `keep`, and leaves no interrupt pending, as the line is edge-triggered.
    pub fn receive(&mut self, port: &mut impl Port, mut keep: impl FnMut(u8)) -> Received {
        let mut taken = 0;
        for _ in 0..CAUSES {
            while port.inb(LSR) & LSR_DATA != 0 {
                if taken == RECEIVE_LIMIT {
                    return Received::More;
                }
                keep(port.inb(DATA));
                taken += 1;
            }
            // Reading IIR acknowledges "transmitter empty", reading MSR a modem change.
            if port.inb(IIR) & NONE_PENDING != 0 {
                return Received::All;
            }
            port.inb(MSR);
        }
        Received::More
    }
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}
