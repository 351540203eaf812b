//! The console against a model of the 16550.

use std::collections::VecDeque;

use caisson_proto::console::{CHANNEL_0, ESCAPE, MAX_CHANNELS};
use proptest::prelude::*;

use super::*;
use crate::uart::*;

#[derive(Default)]
struct Chip {
    ier: u8,
    lcr: u8,
    sent: Vec<u8>,
    /// Bytes that it takes before it is full and stays so.
    takes: usize,
    received: VecDeque<u8>,
    empty_pending: bool,
    log: Vec<u8>,
}

impl Chip {
    fn endless() -> Self {
        Self { takes: usize::MAX, ..Self::default() }
    }
}

impl Port for Chip {
    fn inb(&mut self, port: u16) -> u8 {
        match port {
            DATA => self.received.pop_front().unwrap_or(0),
            LSR => {
                let data = if self.received.is_empty() { 0 } else { LSR_DATA };
                data | if self.takes > 0 { LSR_EMPTY } else { 0 }
            }
            IIR if self.ier & ON_DATA != 0 && !self.received.is_empty() => 4,
            IIR if self.ier & ON_EMPTY != 0 && self.empty_pending => {
                self.empty_pending = false;
                2
            }
            IIR => 1,
            _ => 0,
        }
    }
    fn outb(&mut self, port: u16, value: u8) {
        match port {
            DATA if self.lcr & DIVISOR == 0 => {
                self.sent.push(value);
                self.takes = self.takes.saturating_sub(1);
                self.empty_pending = true;
            }
            IER if self.lcr & DIVISOR == 0 => self.ier = value,
            LCR => self.lcr = value,
            LOG_PORT => self.log.push(value),
            _ => {}
        }
    }
}

/// What a program at the other end of the line makes of it.
fn demultiplex(sent: &[u8]) -> [Vec<u8>; MAX_CHANNELS] {
    let mut channels: [Vec<u8>; MAX_CHANNELS] = Default::default();
    let mut current = None;
    let mut bytes = sent.iter();
    while let Some(&byte) = bytes.next() {
        let byte = match byte {
            ESCAPE => match bytes.next() {
                Some(&ESCAPE) => ESCAPE,
                Some(&digit) => {
                    current = Some(usize::from(digit - CHANNEL_0));
                    continue;
                }
                None => panic!("a lone escape"),
            },
            byte => byte,
        };
        channels[current.expect("a byte of no channel")].push(byte);
    }
    channels
}

fn read_all(console: &mut Console, channel: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = [0; 10];
    loop {
        let count = console.input().peek(channel, &mut part);
        if count == 0 {
            return all;
        }
        all.extend_from_slice(&part[..count]);
        console.input().consume(channel, count);
    }
}

#[test]
fn a_notice_is_a_line_of_hex_on_channel_0() {
    let (mut console, mut chip) = (Console::new(), Chip::endless());
    console.start(&mut chip, false);
    let notice = Notice { state: 3, kind: 0, slot: 2, code: 0x1234, ..Notice::default() };
    assert!(console.notice(notice.as_bytes()));
    assert!(!console.notice(&[0; 31]));
    assert!(console.transmit(&mut chip));
    let line = "0300020000000000341200000000000000000000000000000000000000000000\n";
    assert_eq!(demultiplex(&chip.sent)[0], line.as_bytes());
}

#[test]
fn a_slow_line_is_continued_by_its_interrupt() {
    let (mut console, mut chip) = (Console::new(), Chip::default());
    console.start(&mut chip, false);
    assert_eq!(chip.ier, ON_DATA);
    chip.takes = 1;
    assert_eq!(console.output(1, &[b'x'; 100]), 0);
    assert!(!console.transmit(&mut chip));
    assert_eq!(chip.ier, ON_DATA | ON_EMPTY);
    chip.takes = usize::MAX;
    assert_eq!(console.receive(&mut chip), Received::All);
    assert!(console.transmit(&mut chip));
    assert_eq!(chip.ier, ON_DATA);
    assert_eq!(demultiplex(&chip.sent)[1], [b'x'; 100]);
}

#[test]
fn one_guest_that_floods_delays_another_by_a_turn() {
    let (mut console, mut chip) = (Console::new(), Chip::endless());
    console.start(&mut chip, false);
    console.output(1, &[b'f'; mux::BACKLOG]);
    console.output(2, b"login: ");
    assert!(console.transmit(&mut chip));
    let answered = chip.sent.iter().position(|&byte| byte == b'l').unwrap();
    assert!(answered <= mux::TURN + 4, "{answered}");
}

#[test]
fn a_full_backlog_and_an_unknown_channel_take_nothing() {
    let mut console = Console::new();
    assert_eq!(console.output(3, &[0; mux::BACKLOG + 5]), 5);
    assert!(!console.takes_slot(3));
    assert!(console.takes_slot(4));
    assert!(!console.takes_slot(MAX_CHANNELS));
    assert_eq!(console.output(MAX_CHANNELS, b"abc"), 3);
}

#[test]
fn input_goes_where_it_was_told_and_losses_are_counted() {
    let (mut console, mut chip) = (Console::new(), Chip::endless());
    console.start(&mut chip, false);
    chip.received.extend(b"ab\x012cd\x01\x01e\x010zz\x01?\x011f");
    assert_eq!(console.receive(&mut chip), Received::All);
    assert_eq!(read_all(&mut console, 1), b"abf");
    assert_eq!(read_all(&mut console, 2), b"cd\x01e");
    assert_eq!(console.input().take_lost(), 3);
    chip.received.extend([b'x'; input::BACKLOG + 7]);
    while console.receive(&mut chip) == Received::More {}
    assert_eq!(read_all(&mut console, 1).len(), input::BACKLOG);
    assert_eq!(console.input().take_lost(), 7);
}

#[test]
fn a_successor_waits_for_a_channel_to_be_named() {
    let (mut console, mut chip) = (Console::new(), Chip::endless());
    console.start(&mut chip, true);
    chip.received.extend(b"for whom\x012x");
    console.receive(&mut chip);
    assert_eq!(read_all(&mut console, 1), b"");
    assert_eq!(read_all(&mut console, 2), b"x");
    assert_eq!(console.input().take_lost(), 8);
}

#[test]
fn a_chip_that_lies_does_not_hold_the_console() {
    struct Liar;
    impl Port for Liar {
        fn inb(&mut self, _: u16) -> u8 {
            0xfe | 0x21
        }
        fn outb(&mut self, _: u16, _: u8) {}
    }
    let mut console = Console::new();
    console.start(&mut Liar, false);
    assert_eq!(console.receive(&mut Liar), Received::More);
}

#[test]
fn log_frames_name_their_sender() {
    let mut chip = Chip::endless();
    log_frame(&mut chip, 4, b"frame");
    log_frame(&mut chip, 5, b"");
    assert_eq!(chip.log, b"\xc5\x04\x05\x00frame\xc5\x05\x00\x00");
}

proptest! {
    #[test]
    fn every_channel_arrives_whole_and_in_order(
        writes in prop::collection::vec((0..MAX_CHANNELS, prop::collection::vec(0..4u8, 0..62)), 0..200),
        pace in 1..40usize,
    ) {
        let (mut console, mut chip) = (Console::new(), Chip::default());
        console.start(&mut chip, false);
        let mut expected: [Vec<u8>; MAX_CHANNELS] = Default::default();
        for (channel, bytes) in &writes {
            while !console.takes_slot(*channel) {
                chip.takes = pace;
                console.transmit(&mut chip);
            }
            prop_assert_eq!(console.output(*channel, bytes), 0);
            expected[*channel].extend_from_slice(bytes);
        }
        chip.takes = usize::MAX;
        while !console.transmit(&mut chip) {}
        prop_assert_eq!(demultiplex(&chip.sent), expected);
    }
}
