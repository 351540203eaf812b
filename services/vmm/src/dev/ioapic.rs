//! The I/O APIC: 24 pins to messages (82093AA datasheet; version 0x20 with the EOI register).

/// Where its registers lie.
pub const MMIO: u64 = 0xfec0_0000;
/// Pins.
pub const PINS: u8 = 24;

const MASK: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// Delivery status and remote IRR can't be written; bits 55:17 are reserved.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// An interrupt message on its way to local APICs: the redirection entry's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Vector.
    pub vector: u8,
    /// Delivery mode, 3 bits: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 6 start-up, 7 ExtINT.
    pub mode: u8,
    /// Whether `destination` is logical.
    pub logical: bool,
    /// The destination.
    pub destination: u32,
    /// Level-triggered.
    pub level: bool,
}

/// Messages of one access: pin by pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(pub u32);

/// The I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; PINS as usize],
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASK; PINS as usize], lines: 0 }
    }
}

impl IoApic {
    /// Drives a pin; the message that it causes.
    pub fn set_line(&mut self, pin: u8, high: bool) -> Option<Message> {
        let bit = 1_u32.checked_shl(u32::from(pin)).filter(|_| pin < PINS)?;
        let rose = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        let entry = *self.entries.get(usize::from(pin))?;
        if entry & LEVEL != 0 || rose { self.fire(pin) } else { None }
    }

    /// The message of a pin, if it is to be sent now. An edge counts as present.
    fn fire(&mut self, pin: u8) -> Option<Message> {
        let high = self.lines >> pin & 1 == 1;
        let entry = self.entries.get_mut(usize::from(pin))?;
        let level = *entry & LEVEL != 0;
        if *entry & MASK != 0 || !high || (level && *entry & REMOTE_IRR != 0) {
            return None;
        }
        if level {
            *entry |= REMOTE_IRR;
        }
        Some(Message {
            vector: *entry as u8,
            mode: (*entry >> 8 & 7) as u8,
            logical: *entry >> 11 & 1 == 1,
            destination: (*entry >> 56) as u32,
            level,
        })
    }

    /// A local APIC ended this vector: level-triggered pins whose line is still high are to be sent again; they
    /// are in the result, for [`resend`](Self::resend).
    pub fn end(&mut self, vector: u8) -> Pins {
        let mut again = Pins::default();
        for (pin, entry) in self.entries.iter_mut().enumerate() {
            if *entry as u8 == vector && *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                *entry &= !REMOTE_IRR;
                if self.lines >> pin & 1 == 1 && *entry & MASK == 0 {
                    again.0 |= 1 << pin;
                }
            }
        }
        again
    }

    /// The message of one of the pins that [`end`](Self::end) or [`write`](Self::write) named.
    pub fn resend(&mut self, pin: u8) -> Option<Message> {
        if pin < PINS { self.fire(pin) } else { None }
    }

    /// Reads 32 bits at an offset in its page.
    pub fn read(&self, offset: u64) -> u32 {
        match (offset & 0xff0, self.select) {
            (0x00, select) => u32::from(select),
            (0x10, 0 | 2) => self.id,
            (0x10, 1) => 0x20 | (u32::from(PINS) - 1) << 16,
            (0x10, select @ 0x10..0x40) => {
                let entry = self.entries.get(usize::from(select - 0x10) / 2).copied().unwrap_or(0);
                (entry >> (32 * (select & 1))) as u32
            }
            _ => 0,
        }
    }

    /// Writes 32 bits at an offset in its page; the pins to send.
    pub fn write(&mut self, offset: u64, value: u32) -> Pins {
        match (offset & 0xff0, self.select) {
            (0x00, _) => self.select = value as u8,
            (0x10, 0) => self.id = value & 0x0f00_0000,
            (0x10, select @ 0x10..0x40) => {
                let pin = (select - 0x10) / 2;
                let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return Pins::default() };
                let shift = 32 * u32::from(select & 1);
                let merged = *entry & !(0xffff_ffff << shift) | u64::from(value) << shift;
                *entry = merged & WRITABLE | *entry & REMOTE_IRR;
                // A pin that turns edge-triggered forgets that it waits for an end.
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                } else if *entry & (MASK | REMOTE_IRR) == 0 && self.lines >> pin & 1 == 1 {
                    return Pins(1 << pin);
                }
            }
            (0x40, _) => return self.end(value as u8),
            _ => {}
        }
        Pins::default()
    }

    /// Whether the pin's entry is unmasked.
    pub fn is_unmasked(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_some_and(|entry| entry & MASK == 0)
    }
}
