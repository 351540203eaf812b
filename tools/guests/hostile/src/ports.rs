//! Every port: IN, OUT, INS and OUTS of 1, 2 and 4 bytes, in each mode that may.

use caisson_guest_rt::cpu::outb;
use caisson_guest_rt::println;

use crate::attempt::{END, Frame, Mode, RAX, RDX, place};
use crate::life::Options;
use crate::raw::{DATA, Random};
use crate::report::Tally;

/// rbx and rbp in [`Frame::gpr`].
const RBX: usize = 1;
const RBP: usize = 6;

/// What writes to which would end the VM, or garble what it prints.
const ENDS: &[(u32, u32)] =
    &[(0x60, 0x64), (0xf4, 0xf7), (0x3f8, 0x3ff), (0x505, 0x505), (0x604, 0x605), (0xcf9, 0xcf9)];
/// What else a bare PC has that must not be written blindly: A20 gate, SMI, fw_cfg's DMA, power management, PCI.
const BARE_ENDS: &[(u32, u32)] = &[
    (0x92, 0x92),
    (0xb2, 0xb3),
    (0x402, 0x402),
    (0x510, 0x51b),
    (0x600, 0x63f),
    (0x700, 0x73f),
    (0xcd8, 0xcff),
    (0x2000, 0x201f),
    (0x5658, 0x565b),
    (0xae00, 0xafff),
    (0xc000, 0xcfff),
];

/// The ports are tried in so many blocks.
const BLOCKS: usize = 32;

/// The instruction, and whether it writes to ports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    In,
    Out,
    Ins,
    Outs,
}

const KINDS: [(Kind, &str); 4] =
    [(Kind::In, "ports-in"), (Kind::Out, "ports-out"), (Kind::Ins, "ports-ins"), (Kind::Outs, "ports-outs")];

/// Code under construction.
struct Code {
    bytes: [u8; 64],
    used: usize,
    real: bool,
}

impl Code {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        self
    }

    /// An operand-size prefix, where so many bytes need one.
    fn size(&mut self, bytes: u8) -> &mut Self {
        if bytes == 2 && !self.real || bytes == 4 && self.real { self.put(&[0x66]) } else { self }
    }

    /// An instruction with an immediate as wide as the mode.
    fn wide(&mut self, op: u8, value: u32) -> &mut Self {
        let (value, bytes) = (value.to_le_bytes(), if self.real { 2 } else { 4 });
        self.put(&[op]).put(&value[..bytes])
    }
}

/// A loop over ports from dx on, counted by ebp; ebx counts the reads that weren't all ones.
fn sweep(mode: Mode, kind: Kind, bytes: u8) -> Code {
    let mut code = Code { bytes: [END; 64], used: 0, real: mode == Mode::Real };
    let wide = u8::from(bytes > 1);
    let data = (DATA - mode.base()) as u32;
    match kind {
        Kind::In => {
            code.size(bytes).put(&[0xec | wide]).size(bytes);
            // cmp al/ax/eax, -1; je over inc ebx
            code.put(if bytes == 1 { &[0x3c, 0xff] } else { &[0x83, 0xf8, 0xff] }).put(&[0x74, 2, 0xff, 0xc3]);
        }
        Kind::Out => {
            // Another number each time: add eax, 9e3779b9.
            code.size(bytes).put(&[0xee | wide]).size(4).put(&[0x05]).put(&0x9e37_79b9_u32.to_le_bytes());
        }
        Kind::Ins => {
            code.wide(0xbf, data).wide(0xb9, 2).put(&[0xf3]).size(bytes).put(&[0x6c | wide]);
        }
        Kind::Outs => {
            code.wide(0xbe, data).wide(0xb9, 2).put(&[0xf3]).size(bytes).put(&[0x6e | wide]);
        }
    }
    // inc edx; dec ebp; jnz to the beginning
    code.put(&[0xff, 0xc2, 0xff, 0xcd]);
    let back = -(code.used as i32 + 2);
    code.put(&[0x75, back as u8]);
    code
}

/// Tries the ports from `first` up to `end`.
fn run(mode: Mode, code: &Code, first: u32, end: u32, tally: &mut Tally, value: u64) -> u64 {
    if first >= end {
        return 0;
    }
    place(&code.bytes[..code.used]);
    let mut frame = Frame::new(mode);
    frame.gpr[RAX] = value;
    frame.gpr[RDX] = first.into();
    frame.gpr[RBP] = u64::from(end - first);
    let after = frame.run(mode);
    tally.take(&after);
    tally.add(u64::from(end - first) - 1);
    if after.reached(mode) != code.used as u64 + 1 {
        tally.mix(after.gpr[RDX]);
    }
    after.gpr[RBX] & 0xffff
}

/// Tries the ports of a block, but for those that are left out.
fn among(
    mode: Mode, kind: Kind, (first, end, bytes): (u32, u32, u8), bare: bool, code: &Code, tally: &mut Tally,
    random: &mut Random,
) -> u64 {
    let writes = matches!(kind, Kind::Out | Kind::Outs);
    let mut answered = 0;
    let mut from = first;
    while from < end {
        // Up to the next that is left out: not reached by any byte.
        let all = ENDS.iter().filter(|_| writes || bare).chain(BARE_ENDS.iter().filter(|_| bare));
        let next = all.filter(|(_, last)| *last >= from).min_by_key(|(first, _)| *first);
        let (stop, resume) =
            next.map_or((end, end), |&(first, last)| (first.saturating_sub(u32::from(bytes) - 1), last + 1));
        answered += run(mode, code, from, stop.min(end), tally, random.next());
        from = resume;
    }
    answered
}

/// Every port.
pub fn ports(options: &Options) {
    let random = &mut Random::new(options.seed, "ports");
    for mode in Mode::RULING {
        for (kind, class) in KINDS {
            let mut tally = Tally::new();
            let mut answered = 0;
            for (width, bytes) in [1, 2, 4].into_iter().enumerate() {
                (0..4).for_each(|n| crate::raw::put(DATA + 4 * n, random.next() as u32));
                let code = sweep(mode, kind, bytes);
                // Every width everywhere takes long: by default only IN and OUT of long mode, the others in turn.
                let each = options.all || mode == Mode::Long && matches!(kind, Kind::In | Kind::Out);
                let turn = options.seed as usize + mode as usize;
                let blocks = (0..BLOCKS).filter(|block| each || (block + turn) % 3 == width);
                for block in blocks {
                    let first = (block * 0x1_0000 / BLOCKS) as u32;
                    let end = first + (0x1_0000 / BLOCKS) as u32;
                    answered += among(mode, kind, (first, end, bytes), options.bare, &code, &mut tally, random);
                }
            }
            tally.tell(class, mode.name());
            if kind == Kind::In {
                // Counters run; so not every time the same.
                println!("hostile total ports-answering {}: {answered}", mode.name());
            }
        }
        quiet();
    }
    serial_port(options.bare, random);
}

/// The serial port's registers, any number in each; then as they were.
fn serial_port(bare: bool, random: &mut Random) {
    for mode in Mode::RULING {
        let mut tally = Tally::new();
        for bytes in [1, 2, 4].into_iter().filter(|bytes| *bytes == 1 || !bare) {
            let code = sweep(mode, Kind::Out, bytes);
            for _ in 0..16 {
                run(mode, &code, 0x3f9, 0x400, &mut tally, random.next());
            }
        }
        quiet();
        tally.tell("serial-port", mode.name());
    }
}

/// Masks the interrupt controllers, and makes the serial port print again.
pub fn quiet() {
    for port in [0x21, 0xa1] {
        outb(port, 0xff);
    }
    for (register, value) in [(3, 3), (1, 0), (2, 7), (4, 3)] {
        outb(0x3f8 + register, value);
    }
}
