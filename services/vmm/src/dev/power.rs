//! Ports by which a guest ends or restarts itself: the keyboard controller's reset line, port cf9, ACPI's sleep
//! control register, and pvpanic.

/// Sleep control register of ACPI's hardware-reduced model (ACPI 6.5, section 4.8.3.7), 8 bits. Where a 16-bit
/// PM1 control register would be, so that its format is understood too.
pub const SLEEP_CONTROL: u16 = 0x604;
/// Sleep status register.
pub const SLEEP_STATUS: u16 = 0x605;
/// ACPI's power-management timer.
pub const PM_TIMER: u16 = 0x608;
/// Reset control (as in Intel's south bridges): bit 2 resets. ACPI's reset register.
pub const RESET: u16 = 0xcf9;
/// What is written to [`RESET`] by ACPI.
pub const RESET_VALUE: u8 = 6;
/// SLP_TYP of S5 in the DSDT.
pub const S5: u8 = 5;
/// pvpanic (QEMU's specification "pvpanic"): bit 0 says panicked, bit 1 crash-loaded.
pub const PANIC: u16 = 0x505;
/// Keyboard controller: data.
pub const KEYBOARD_DATA: u16 = 0x60;
/// Keyboard controller: status and command.
pub const KEYBOARD: u16 = 0x64;

/// What a write asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    None,
    /// Power off.
    Off,
    /// Reset.
    Reset,
    /// The guest panicked.
    Panicked,
}

/// The few bits that these ports keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Power {
    reset_control: u8,
}

impl Power {
    /// What a write to one of these ports asks for.
    pub fn write(&mut self, port: u16, value: u32, bytes: u8) -> Request {
        match port {
            SLEEP_CONTROL => {
                let reduced = value & 0x20 != 0 && value >> 2 & 7 == u32::from(S5);
                let pm1 = bytes > 1 && value & 1 << 13 != 0;
                if reduced || pm1 { Request::Off } else { Request::None }
            }
            RESET => {
                self.reset_control = value as u8 & 0xa;
                if value & 4 != 0 { Request::Reset } else { Request::None }
            }
            // Pulse output lines: bit 0 low is the processor's reset line.
            KEYBOARD if value & 0xf1 == 0xf0 => Request::Reset,
            PANIC if value & 1 != 0 => Request::Panicked,
            _ => Request::None,
        }
    }

    /// A read of one of these ports. `None`: it isn't one.
    pub fn read(&self, port: u16) -> Option<u8> {
        match port {
            // No byte waits and the controller is ready, so nobody waits for it. No key was pressed.
            KEYBOARD | KEYBOARD_DATA => Some(0),
            RESET => Some(self.reset_control),
            SLEEP_CONTROL | SLEEP_STATUS => Some(0),
            PANIC => Some(1),
            _ => None,
        }
    }
}

/// The power-management timer: 24 bits at 3 579 545 Hz.
pub fn pm_timer(tsc: u64, khz: u64) -> u32 {
    (u128::from(tsc) * 3_579_545 / u128::from(khz.max(1).saturating_mul(1000))) as u32 & 0xff_ffff
}
