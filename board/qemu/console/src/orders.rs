//! What a person wants of a VM's memory, found on the system channel: `r`, the VM's digit, a knob's letter, a number in
//! hexadecimal, the end of the line. Of each knob of each VM the newest order counts.

use caisson_proto::console::Knob;
use caisson_proto::console::{CHANNEL_0, MAX_CHANNELS, RESIZE};

/// Digits of a number at the most.
const DIGITS: u8 = 16;

/// How far a line is.
#[derive(Clone, Copy, Debug, Default)]
enum Line {
    #[default]
    None,
    Begun,
    Of(usize),
    Number {
        vm: usize,
        knob: Knob,
        value: u64,
        digits: u8,
    },
}

/// Orders that were found.
#[derive(Debug, Default)]
pub struct Orders {
    line: Line,
    found: [[Option<u64>; Knob::ALL.len()]; MAX_CHANNELS],
}

/// The value of a digit of a hexadecimal number, in lower case.
const fn hex(byte: u8) -> Option<u64> {
    match byte {
        b'0'..=b'9' => Some((byte - b'0') as u64),
        b'a'..=b'f' => Some((byte - b'a') as u64 + 10),
        _ => None,
    }
}

impl Orders {
    /// None yet.
    pub const fn new() -> Self {
        Self { line: Line::None, found: [[None; Knob::ALL.len()]; MAX_CHANNELS] }
    }

    /// A byte of the channel. False if it belongs to no order, and what of one came before is forgotten.
    pub fn feed(&mut self, byte: u8) -> bool {
        let next = match core::mem::take(&mut self.line) {
            Line::None if byte == RESIZE => Some(Line::Begun),
            Line::Begun => {
                let vm = usize::from(byte.wrapping_sub(CHANNEL_0));
                (1..MAX_CHANNELS).contains(&vm).then_some(Line::Of(vm))
            }
            Line::Of(vm) => {
                let knob = Knob::ALL.iter().find(|knob| knob.letter() == byte);
                knob.map(|knob| Line::Number { vm, knob: *knob, value: 0, digits: 0 })
            }
            Line::Number { vm, knob, value, digits: 1.. } if byte == b'\n' => {
                let place = self.found.get_mut(vm).and_then(|knobs| knobs.get_mut(knob as usize));
                place.map(|place| {
                    *place = Some(value);
                    Line::None
                })
            }
            Line::Number { vm, knob, value, digits } if digits < DIGITS => {
                hex(byte).map(|digit| Line::Number { vm, knob, value: value << 4 | digit, digits: digits + 1 })
            }
            _ => None,
        };
        self.line = next.unwrap_or_default();
        next.is_some()
    }

    /// An order for the VM with this channel. It stays.
    pub fn peek(&self, vm: usize) -> Option<(Knob, u64)> {
        let knobs = self.found.get(vm)?;
        Knob::ALL.iter().zip(knobs).find_map(|(knob, value)| Some((*knob, (*value)?)))
    }

    /// That order was passed on.
    pub fn done(&mut self, vm: usize, knob: Knob) {
        if let Some(place) = self.found.get_mut(vm).and_then(|knobs| knobs.get_mut(knob as usize)) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn all(orders: &mut Orders) -> Vec<(usize, Knob, u64)> {
        let mut found = Vec::new();
        for vm in 0..MAX_CHANNELS + 1 {
            while let Some((knob, value)) = orders.peek(vm) {
                found.push((vm, knob, value));
                orders.done(vm, knob);
            }
        }
        found
    }

    #[test]
    fn the_newest_order_for_each_knob_counts() {
        let mut orders = Orders::new();
        assert!(b"r1b8000000\nr1b0\nr9pffffffffffffffff\nr1p2a\n".iter().all(|byte| orders.feed(*byte)));
        let expected = [(1, Knob::Balloon, 0), (1, Knob::Plugged, 0x2a), (9, Knob::Plugged, u64::MAX)];
        assert_eq!(all(&mut orders), expected);
        assert_eq!(all(&mut orders), []);
    }

    #[test]
    fn what_is_no_order_is_none() {
        for bad in ["r0b1\n", "r:b1\n", "r1x1\n", "r1b\n", "r1bA\n", "r1b11111111111111111\n", "rr1b1", "1b1\n"] {
            let mut orders = Orders::new();
            let heard: Vec<bool> = bad.bytes().map(|byte| orders.feed(byte)).collect();
            assert!(heard.contains(&false) || !bad.ends_with('\n'), "{bad}");
            assert_eq!(all(&mut orders), [], "{bad}");
        }
    }
}
