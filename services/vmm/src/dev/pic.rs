//! The pair of 8259A interrupt controllers (Intel 8259A datasheet), cascaded at input 2.

/// The first chip's input from the second.
const CASCADE: u8 = 1 << 2;

/// One controller.
#[derive(Clone, Copy, Debug, Default)]
struct Chip {
    irr: u8,
    isr: u8,
    mask: u8,
    lines: u8,
    /// Level-triggered inputs (ports 4d0, 4d1).
    level: u8,
    base: u8,
    /// Next initialization word expected: 0 none, else 2 to 4.
    expect: u8,
    wants_icw4: bool,
    auto_eoi: bool,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    /// The input of lowest priority.
    lowest: u8,
}

impl Chip {
    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        let rose = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if rose || (high && self.level & bit != 0) {
            self.irr |= bit;
        } else if !high && self.level & bit != 0 {
            // An edge stays requested, as on emulated PCs; the chip would answer with its spurious vector.
            self.irr &= !bit;
        }
    }

    /// Inputs in order of priority, the highest first.
    fn order(&self) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8).map(move |n| lowest.wrapping_add(n) & 7)
    }

    #[inline]
    fn pending(&self) -> Option<u8> {
        if self.irr & !self.mask == 0 { None } else { self.first_by_priority() }
    }

    fn first_by_priority(&self) -> Option<u8> {
        for input in self.order() {
            let bit = 1 << input;
            let blocked = self.isr & bit != 0 && !(self.special_mask && self.mask & bit != 0);
            if blocked {
                return None;
            }
            if self.irr & !self.mask & bit != 0 && self.isr & bit == 0 {
                return Some(input);
            }
        }
        None
    }

    fn take(&mut self, input: u8) -> u8 {
        let bit = 1 << input;
        if self.level & bit == 0 || self.lines & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        }
        self.base & 0xf8 | input
    }

    fn end(&mut self, specific: Option<u8>, rotate: bool) {
        let served = self.order().find(|&input| self.isr >> input & 1 == 1);
        if let Some(input) = specific.or(served) {
            self.isr &= !(1 << input);
            if self.level & self.lines & 1 << input != 0 {
                self.irr |= 1 << input;
            }
            if rotate {
                self.lowest = input;
            }
        }
    }

    fn command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            *self = Self { lines: self.lines, level: self.level, lowest: 7, expect: 2, ..Self::default() };
            self.wants_icw4 = value & 1 != 0;
        } else if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            match value >> 5 {
                1 => self.end(None, false),
                3 => self.end(Some(value & 7), false),
                5 => self.end(None, true),
                7 => self.end(Some(value & 7), true),
                6 => self.lowest = value & 7,
                _ => {}
            }
        }
    }

    fn data(&mut self, value: u8) {
        match self.expect {
            2 => {
                self.base = value;
                self.expect = 3;
            }
            3 => self.expect = if self.wants_icw4 { 4 } else { 0 },
            4 => {
                self.auto_eoi = value & 2 != 0;
                self.expect = 0;
            }
            _ => self.mask = value,
        }
    }

    fn read(&mut self, data: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending() {
                Some(input) => {
                    self.take(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (data, self.read_isr) {
            (true, _) => self.mask,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

/// Both controllers.
#[derive(Clone, Debug)]
pub struct Pics {
    first: Chip,
    second: Chip,
}

impl Default for Pics {
    fn default() -> Self {
        let chip = Chip { mask: 0xff, lowest: 7, ..Chip::default() };
        // The cascade follows the second chip's output, not its edges.
        Self { first: Chip { level: CASCADE, ..chip }, second: chip }
    }
}

impl Pics {
    /// Drives input 0 to 15.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        if irq < 8 {
            self.first.set_line(irq, high);
        } else if irq < 16 {
            self.second.set_line(irq - 8, high);
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let asserts = self.second.pending().is_some();
        self.first.set_line(2, asserts);
    }

    /// Whether it asks for an interrupt.
    pub fn asserts(&self) -> bool {
        self.first.pending().is_some()
    }

    /// The processor acknowledges: the vector to take. 7 of the first is the spurious one.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.first.pending() {
            Some(2) => {
                self.first.take(2);
                match self.second.pending() {
                    Some(input) => self.second.take(input),
                    None => self.second.base & 0xf8 | 7,
                }
            }
            Some(input) => self.first.take(input),
            None => self.first.base & 0xf8 | 7,
        };
        self.cascade();
        vector
    }

    /// Reads ports 20, 21, a0, a1, 4d0, 4d1.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x20 | 0x21 => self.first.read(port & 1 == 1),
            0xa0 | 0xa1 => self.second.read(port & 1 == 1),
            0x4d0 => self.first.level & !CASCADE,
            0x4d1 => self.second.level,
            _ => 0xff,
        };
        self.cascade();
        value
    }

    /// Writes the same ports.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.first.command(value),
            0x21 => self.first.data(value),
            0xa0 => self.second.command(value),
            0xa1 => self.second.data(value),
            // Timer, keyboard, cascade; clock and coprocessor are always edges.
            0x4d0 => self.first.level = value & 0xf8 | CASCADE,
            0x4d1 => self.second.level = value & 0xde,
            _ => {}
        }
        self.cascade();
    }
}
