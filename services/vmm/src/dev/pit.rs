//! The 8254 timer with port 0x61 (Intel 8254 datasheet): channel 0 is IRQ 0, channel 2 the speaker's.
//!
//! Nothing counts: a channel knows when it was loaded, and its count and output follow from the time. Binary
//! counting only; BCD counts as binary. All times are the machine's TSC.

/// The input clock in hertz.
pub const HERTZ: u64 = 1_193_182;

/// Converts between TSC ticks and the input clock.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    tsc_hz: u64,
}

impl Rate {
    /// A TSC of `khz` ticks a millisecond.
    pub fn new(khz: u64) -> Self {
        Self { tsc_hz: khz.max(1).saturating_mul(1000) }
    }
    fn ticks(self, tsc: u64) -> u64 {
        (u128::from(tsc) * u128::from(HERTZ) / u128::from(self.tsc_hz)) as u64
    }
    fn tsc(self, ticks: u64) -> u64 {
        (u128::from(ticks) * u128::from(self.tsc_hz)).div_ceil(u128::from(HERTZ)) as u64
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    mode: u8,
    access: u8,
    count: u32,
    low: u8,
    write_high: bool,
    read_high: bool,
    latched: Option<u16>,
    status: Option<u8>,
    loaded_at: u64,
    gate: bool,
    running: bool,
}

impl Channel {
    /// Input ticks since it was loaded.
    fn elapsed(&self, rate: Rate, now: u64) -> u64 {
        if self.running { rate.ticks(now.saturating_sub(self.loaded_at)) } else { 0 }
    }

    fn value(&self, rate: Rate, now: u64) -> u16 {
        let elapsed = self.elapsed(rate, now);
        let count = u64::from(self.count.max(1));
        match self.mode {
            2 => (count - elapsed % count) as u16,
            3 => (count - (elapsed * 2) % count) as u16,
            _ => count.wrapping_sub(elapsed) as u16,
        }
    }

    fn output(&self, rate: Rate, now: u64) -> bool {
        let elapsed = self.elapsed(rate, now);
        let count = u64::from(self.count.max(1));
        match self.mode {
            0 | 1 => self.running && elapsed >= count,
            2 => !self.running || elapsed % count != count - 1,
            3 => !self.running || elapsed % count < count.div_ceil(2),
            _ => !self.running || elapsed != count,
        }
    }

    fn load(&mut self, count: u16, now: u64) {
        self.count = if count == 0 { 0x1_0000 } else { u32::from(count) };
        // Modes 1 and 5 wait for the gate to rise.
        self.running = self.mode != 1 && self.mode != 5 && self.gate;
        self.loaded_at = now;
    }

    fn write(&mut self, value: u8, now: u64) -> bool {
        match (self.access, self.write_high) {
            (1, _) => self.load(u16::from(value), now),
            (2, _) => self.load(u16::from(value) << 8, now),
            (_, false) => {
                self.low = value;
                self.write_high = true;
                return false;
            }
            (_, true) => {
                self.write_high = false;
                self.load(u16::from_le_bytes([self.low, value]), now);
            }
        }
        true
    }

    fn read(&mut self, rate: Rate, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(rate, now)).to_le_bytes();
        let (byte, done) = match (self.access, self.read_high) {
            (1, _) => (low, true),
            (2, _) | (_, true) => (high, true),
            (_, false) => (low, false),
        };
        self.read_high = !done;
        if done {
            self.latched = None;
        }
        byte
    }
}

/// The timer.
#[derive(Clone, Debug)]
pub struct Pit {
    rate: Rate,
    channels: [Channel; 3],
    speaker: u8,
    /// When channel 0 interrupts next; 0 for never.
    due: u64,
}

impl Pit {
    /// A stopped timer on a machine whose TSC has `khz` ticks a millisecond.
    pub fn new(khz: u64) -> Self {
        let gated = Channel { gate: true, access: 3, ..Channel::default() };
        let channels = [gated, gated, Channel { gate: false, ..gated }];
        Self { rate: Rate::new(khz), channels, speaker: 0, due: 0 }
    }

    /// When channel 0 interrupts next; 0 for never.
    pub fn due(&self) -> u64 {
        self.due
    }

    fn schedule(&mut self, now: u64) {
        let [first, ..] = &self.channels;
        let count = u64::from(first.count.max(1));
        self.due = match first.mode {
            _ if !first.running => 0,
            2 | 3 => {
                let periods = first.elapsed(self.rate, now) / count + 1;
                first.loaded_at.saturating_add(self.rate.tsc(periods.saturating_mul(count))).max(now + 1)
            }
            _ => first.loaded_at.saturating_add(self.rate.tsc(count)),
        };
    }

    /// True if channel 0 interrupts now. Periods that were missed are lost.
    pub fn expire(&mut self, now: u64) -> bool {
        if self.due == 0 || now < self.due {
            return false;
        }
        let [first, ..] = &self.channels;
        if matches!(first.mode, 2 | 3) {
            self.schedule(now)
        } else {
            self.due = 0
        }
        true
    }

    /// Reads ports 40 to 43 and 61.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let rate = self.rate;
        match port {
            0x40..=0x42 => self.channels.get_mut(usize::from(port - 0x40)).map_or(0xff, |c| c.read(rate, now)),
            0x61 => {
                let [.., third] = &self.channels;
                // The refresh bit toggles every 15 µs: each 18 input ticks.
                let refresh = ((rate.ticks(now) / 18) & 1) as u8;
                self.speaker & 3 | refresh << 4 | u8::from(third.output(rate, now)) << 5
            }
            _ => 0xff,
        }
    }

    /// Writes the same ports.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x40..=0x42 => {
                let index = usize::from(port - 0x40);
                let loaded = self.channels.get_mut(index).is_some_and(|c| c.write(value, now));
                if loaded && index == 0 {
                    self.schedule(now);
                }
            }
            0x43 if value >> 6 == 3 => self.read_back(value, now),
            0x43 => {
                let rate = self.rate;
                let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) else { return };
                if value >> 4 & 3 == 0 {
                    channel.latched = channel.latched.or(Some(channel.value(rate, now)));
                    return;
                }
                let mode = match value >> 1 & 7 {
                    mode @ 0..=5 => mode,
                    mode => mode & 3,
                };
                *channel = Channel { access: value >> 4 & 3, mode, gate: channel.gate, ..Channel::default() };
                if value >> 6 == 0 {
                    self.due = 0;
                }
            }
            0x61 => {
                self.speaker = value & 3;
                let [.., third] = &mut self.channels;
                let rises = value & 1 != 0 && !third.gate;
                third.gate = value & 1 != 0;
                if rises && third.count != 0 {
                    third.running = true;
                    third.loaded_at = now;
                } else if !third.gate && matches!(third.mode, 0 | 2 | 3 | 4) {
                    third.running = false;
                }
            }
            _ => {}
        }
    }

    fn read_back(&mut self, value: u8, now: u64) {
        let rate = self.rate;
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value >> (index + 1) & 1 == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latched = channel.latched.or(Some(channel.value(rate, now)));
            }
            if value & 0x10 == 0 {
                let output = u8::from(channel.output(rate, now)) << 7;
                let null = u8::from(!channel.running) << 6;
                channel.status = Some(output | null | channel.access << 4 | channel.mode << 1);
            }
        }
    }
}
