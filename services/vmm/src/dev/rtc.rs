//! The CMOS clock (MC146818A datasheet) at ports 70 and 71: time and 128 bytes.
//!
//! Time runs from the configured epoch with the TSC. The guest may set registers, but not the time: Linux takes
//! it from kvmclock and writes it back to the RTC only by request. The clock raises no interrupt, and its ACPI
//! description names none.

/// Addresses of the index and data ports.
pub const PORTS: core::ops::RangeInclusive<u16> = 0x70..=0x71;

const CENTURY: u8 = 0x32;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const SET: u8 = 1 << 7;

/// A day and a time of day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Year.
    pub year: u64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Day of the week, Sunday is 1.
    pub weekday: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute.
    pub minute: u8,
    /// Second.
    pub second: u8,
}

impl Civil {
    /// Of this many seconds since 1970-01-01 00:00:00.
    pub fn from_seconds(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Count from 0000-03-01, so that leap days end the years; 400 years have 146 097 days.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month: month as u8,
            day: (of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    epoch: u64,
    started: u64,
    tsc_hz: u64,
    index: u8,
    cmos: [u8; 128],
}

impl Rtc {
    /// A clock that shows `epoch` (seconds since 1970) at `started` (machine's TSC).
    pub fn new(epoch: u64, started: u64, khz: u64) -> Self {
        let mut cmos = [0; 128];
        cmos[0x0a] = 0x26;
        cmos[0x0b] = HOURS_24;
        cmos[0x0d] = 0x80;
        Self { epoch, started, tsc_hz: khz.max(1).saturating_mul(1000), index: 0, cmos }
    }

    /// Reads port 70 or 71.
    pub fn read(&self, port: u16, now: u64) -> u8 {
        if port & 1 == 0 {
            return 0xff;
        }
        let control = self.register(0x0b);
        let elapsed = now.saturating_sub(self.started) / self.tsc_hz;
        let time = Civil::from_seconds(self.epoch.saturating_add(elapsed).min(1 << 40));
        let value = match self.index {
            // While SET is on the guest sees what it wrote.
            0 | 2 | 4 | 6..=9 | CENTURY if control & SET != 0 => return self.register(self.index),
            0 => time.second,
            2 => time.minute,
            4 if control & HOURS_24 == 0 => {
                let afternoon = if time.hour >= 12 { 0x80 } else { 0 };
                return afternoon | encode(control, (time.hour + 11) % 12 + 1);
            }
            4 => time.hour,
            6 => time.weekday,
            7 => time.day,
            8 => time.month,
            9 => (time.year % 100) as u8,
            CENTURY => (time.year / 100) as u8,
            0x0c => return 0,
            index => return self.register(index),
        };
        encode(control, value)
    }

    fn register(&self, index: u8) -> u8 {
        self.cmos.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    /// Writes port 70 or 71.
    pub fn write(&mut self, port: u16, value: u8) {
        if port & 1 == 0 {
            self.index = value & 0x7f;
        } else if let Some(register) = self.cmos.get_mut(usize::from(self.index)) {
            match self.index {
                // Never updating; C and D can't be written.
                0x0a => *register = value & 0x7f,
                0x0c | 0x0d => {}
                _ => *register = value,
            }
        }
    }
}

fn encode(control: u8, value: u8) -> u8 {
    if control & BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
}
