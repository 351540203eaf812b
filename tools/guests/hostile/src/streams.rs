//! Random bytes as code of ring 3, single-stepped, so that none runs for ever: 64 bits, 32 bits; and in real mode
//! those without an instruction that ends the VM.

use crate::attempt::{DB, Frame, INTERRUPTS, Mode, TRAP, place};
use crate::life::Options;
use crate::raw::{CODE, DATA, Random, STACK, fill};
use crate::report::{Tally, show};

/// Streams of a line.
const BLOCK: u64 = 64;
/// Lines of a mode.
const BLOCKS: u64 = 10;
/// Steps of a stream at the most.
const STEPS: u64 = 12;
/// Bytes of one.
const BYTES: usize = 32;

/// Bytes that a stream for real mode doesn't have: port instructions, HLT, CLI, two-byte instructions and far jumps by
/// 32 bits, of which some leave real mode; the prefix for 32-bit addresses, and POPF, after which nothing would stop it.
const ENDING: [u8; 22] = [
    0x0f, 0x17, 0x66, 0x67, 0x6c, 0x6d, 0x6e, 0x6f, 0x8e, 0x9a, 0x9d, 0xca, 0xcb, 0xcf, 0xe4, 0xe5, 0xe6, 0xe7, 0xea,
    0xec, 0xed, 0xee,
];
/// The others.
const ENDING_TOO: [u8; 10] = [0x64, 0x65, 0xef, 0xf4, 0xfa, 0x07, 0x1f, 0xc4, 0xc5, 0xff];

fn bytes(random: &mut Random, mode: Mode) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for byte in &mut bytes {
        *byte = random.next() as u8;
        while mode == Mode::Real && (ENDING.contains(byte) || ENDING_TOO.contains(byte)) {
            *byte = random.next() as u8;
        }
    }
    // An opcode that does more than the others comes more often.
    if mode != Mode::Real && random.below(3) == 0 {
        let at = random.below(4) as usize;
        bytes[at] = 0x0f;
        bytes[at + 1] = [0x00, 0x01, 0x20, 0x22, 0x30, 0x32, 0xa2, 0xae, 0xc7, 0x05][random.below(10) as usize];
    }
    bytes
}

fn stream(random: &mut Random, mode: Mode, tally: &mut Tally) -> Frame {
    let code = bytes(random, mode);
    fill(CODE, 0x1000, crate::attempt::END);
    fill(DATA, 0x200, 0x5a);
    place(&code);
    let mut frame = Frame::new(mode);
    for register in &mut frame.gpr {
        *register = match random.below(3) {
            0 => random.edge(),
            1 => random.below(256),
            _ => DATA - mode.base() + random.below(64),
        };
    }
    if mode == Mode::Real {
        // All segments are one, where nothing of ours lies.
        (frame.ss, frame.rsp) = (frame.cs, STACK - CODE);
    }
    frame.rsp -= 0x80;
    frame.rflags |= TRAP | if mode == Mode::Real { 0 } else { INTERRUPTS };
    let mut steps = 0;
    loop {
        frame = frame.run(mode);
        steps += 1;
        tally.mix(frame.rip);
        if frame.vector != DB || steps == STEPS {
            break;
        }
        frame.rflags |= TRAP;
    }
    show(format_args!("{} {code:02x?}: {} after {steps}", mode.name(), frame.outcome(mode)));
    frame
}

/// Some hundred in each mode.
pub fn streams(options: &Options) {
    let mut random = Random::new(options.seed, "streams");
    for mode in [Mode::User64, Mode::Compatible, Mode::Real] {
        let mut total = Tally::new();
        for block in 0..BLOCKS {
            let mut tally = Tally::new();
            for _ in 0..BLOCK {
                let after = stream(&mut random, mode, &mut tally);
                tally.take(&after);
                total.take(&after);
            }
            let mut class = crate::report::Line::new();
            let _ = core::fmt::Write::write_fmt(&mut class, format_args!("stream-{block}"));
            tally.tell(class.text(), mode.name());
        }
        total.total("streams", mode.name());
    }
}
