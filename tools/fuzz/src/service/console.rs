//! console: bytes from the line, from guests and from the supervisor's ring.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::console::{CHANNEL_0, ESCAPE, LOG_MAGIC, MAX_CHANNELS};
use caisson_proto::supervisor::Notice;
use caisson_qemu_console::uart::{DATA, DIVISOR, IIR, LCR, LSR, LSR_DATA, LSR_EMPTY};
use caisson_qemu_console::{Console, LOG_PORT, Port, log_frame};

/// A serial port that takes so many bytes.
#[derive(Default)]
struct Chip {
    divisor: bool,
    takes: usize,
    received: VecDeque<u8>,
    sent: Vec<u8>,
    log: Vec<u8>,
}

impl Port for Chip {
    fn inb(&mut self, port: u16) -> u8 {
        match port {
            DATA => self.received.pop_front().unwrap_or(0),
            LSR => (if self.received.is_empty() { 0 } else { LSR_DATA }) | if self.takes > 0 { LSR_EMPTY } else { 0 },
            IIR => u8::from(self.received.is_empty()),
            _ => 0,
        }
    }
    fn outb(&mut self, port: u16, value: u8) {
        match port {
            DATA if !self.divisor => {
                self.takes = self.takes.saturating_sub(1);
                self.sent.push(value);
            }
            LCR => self.divisor = value & DIVISOR != 0,
            LOG_PORT => self.log.push(value),
            _ => {}
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Output(u8, Vec<u8>),
    Notice(Vec<u8>),
    TrueNotice([u8; 32]),
    Line(Vec<u8>),
    Takes(u16),
    Transmit,
    Read { channel: u8, length: u8, taken: u8 },
    Log(u8, Vec<u8>),
    Restart,
}

/// console: on the line every byte is of its channel and in its order, whatever guests send.
pub fn console(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut console = Box::new(Console::new());
    let mut chip = Chip::default();
    let mut put: [Vec<u8>; MAX_CHANNELS] = Default::default();
    console.start(&mut chip, false);
    for _ in 0..200 {
        let Ok(step) = input.arbitrary::<Step>() else { break };
        match step {
            Step::Output(channel, bytes) => {
                let channel = usize::from(channel) % (MAX_CHANNELS + 1);
                let left = console.output(channel, &bytes);
                let taken = &bytes[..bytes.len() - left];
                match put.get_mut(channel) {
                    Some(put) => put.extend(taken),
                    None => assert!(taken.is_empty()),
                }
            }
            Step::Notice(bytes) => {
                if console.notice(&bytes) {
                    assert_eq!(bytes.len(), size_of::<Notice>());
                    put[0].extend(bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).chain([b'\n']));
                }
            }
            Step::TrueNotice(bytes) => {
                let room = console.takes_notice();
                assert_eq!(console.notice(&bytes), room);
                if room {
                    put[0].extend(bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).chain([b'\n']));
                }
            }
            Step::Line(bytes) => {
                chip.received.extend(bytes);
                console.receive(&mut chip);
            }
            Step::Takes(count) => chip.takes = count.into(),
            Step::Transmit => _ = console.transmit(&mut chip),
            Step::Read { channel, length, taken } => {
                let mut buffer = vec![0; length.into()];
                let count = console.input().peek(channel.into(), &mut buffer);
                assert!(count <= buffer.len());
                console.input().consume(channel.into(), taken.into());
                console.input().take_lost();
            }
            Step::Log(slot, frame) => {
                chip.log.clear();
                log_frame(&mut chip, slot, &frame);
                assert!(chip.log.len() == frame.len() + 4 && chip.log[0] == LOG_MAGIC);
            }
            Step::Restart => {
                console.start(&mut chip, true);
            }
        }
        if input.is_empty() {
            break;
        }
    }
    (chip.takes, chip.divisor) = (usize::MAX, false);
    while !console.transmit(&mut chip) {}
    assert!(demultiplex(&chip.sent) == put, "a channel has what another sent, or lost some");
}

/// What a program at the other end of the line makes of it.
fn demultiplex(sent: &[u8]) -> [Vec<u8>; MAX_CHANNELS] {
    let mut channels: [Vec<u8>; MAX_CHANNELS] = Default::default();
    let mut current = None;
    let mut bytes = sent.iter();
    while let Some(&byte) = bytes.next() {
        if byte == ESCAPE {
            match bytes.next() {
                Some(&ESCAPE) => {}
                Some(&digit) => {
                    current = Some(usize::from(digit - CHANNEL_0));
                    continue;
                }
                None => panic!("a lone escape"),
            }
        }
        channels[current.expect("a byte of no channel")].push(byte);
    }
    channels
}
