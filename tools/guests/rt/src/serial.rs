//! The serial line, output only.

use core::fmt;

use crate::cpu::{inb, outb};

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
/// The transmitter has room.
const ROOM: u8 = 1 << 5;

/// COM1, as the reset left it.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(LINE_STATUS) & ROOM == 0 {
                core::hint::spin_loop();
            }
            outb(DATA, byte);
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}
