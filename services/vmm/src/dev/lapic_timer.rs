//! The timer of a local APIC: one-shot, periodic and TSC-deadline (APM volume 2, section 16.4.1).
//!
//! Its input clock is a 16th of the TSC, as the KVM timing leaf says: some 100 to 250 MHz, as the clock of a processor's bus.
//! All times here are the machine's TSC.

/// Its input clock is the TSC, shifted right by this.
pub const CLOCK_SHIFT: u32 = 4;

/// What the timer does at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    OneShot,
    Periodic,
    Deadline,
}

/// The timer.
#[derive(Clone, Debug, Default)]
pub struct Timer {
    mode: Mode,
    divide: u32,
    initial: u32,
    /// When it fires next; 0 while it stands.
    due: u64,
}

impl Timer {
    /// When it fires next; 0 for never.
    #[inline]
    pub fn due(&self) -> u64 {
        self.due
    }

    fn shift(&self) -> u32 {
        // Bits 3, 1 and 0: 000 divides by 2, 110 by 128, 111 by 1.
        CLOCK_SHIFT + ((((self.divide & 3) | (self.divide >> 1 & 4)) + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) << self.shift()
    }

    /// Chooses the mode, as bits 18:17 of its LVT entry. A change of it from or to TSC-deadline stops the timer.
    pub fn set_mode(&mut self, bits: u32) {
        let mode = match bits {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            _ => Mode::Deadline,
        };
        if (mode == Mode::Deadline) != (self.mode == Mode::Deadline) {
            self.due = 0;
            self.initial = 0;
        }
        self.mode = mode;
    }

    /// Writes the initial count.
    pub fn start(&mut self, count: u32, now: u64) {
        if self.mode == Mode::Deadline {
            return;
        }
        self.initial = count;
        self.due = if count == 0 { 0 } else { now.saturating_add(self.period()) };
    }

    /// The initial count.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// The current count.
    pub fn current(&self, now: u64) -> u32 {
        if self.mode == Mode::Deadline || self.due == 0 {
            return 0;
        }
        u32::try_from(self.due.saturating_sub(now) >> self.shift()).unwrap_or(u32::MAX)
    }

    /// The divide configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration; the count goes on from where it is.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        let left = self.current(now);
        self.divide = value & 0xb;
        if self.due != 0 && self.mode != Mode::Deadline {
            self.due = now.saturating_add(u64::from(left) << self.shift());
        }
    }

    /// Arms the TSC-deadline; `due` 0 disarms. Ignored in the other modes.
    #[inline]
    pub fn set_deadline(&mut self, due: u64) {
        if self.mode == Mode::Deadline {
            self.due = due;
        }
    }

    /// Whether it is in TSC-deadline mode.
    #[inline]
    pub fn is_deadline(&self) -> bool {
        self.mode == Mode::Deadline
    }

    /// True if it fired; a periodic one goes on, and what it missed is lost.
    #[inline]
    pub fn expire(&mut self, now: u64) -> bool {
        if self.due == 0 || now < self.due {
            return false;
        }
        let period = self.period();
        self.due = if self.mode == Mode::Periodic && period != 0 {
            let missed = (now - self.due) / period;
            self.due.saturating_add(missed.saturating_add(1).saturating_mul(period))
        } else {
            0
        };
        true
    }
}
