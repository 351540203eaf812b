//! Every MSR of the architectural ranges and a sample of the others: read, and written with what it has, with edges
//! and with anything.

use caisson_guest_rt::println;

use crate::attempt::{Frame, Mode, RAX, RCX, RDX, place};
use crate::life::Options;
use crate::raw::Random;
use crate::report::{Line, Tally, show};

const RANGES: [(u32, u32); 6] = [
    (0, 0x2000),
    (0x4000_0000, 0x4000_0200),
    (0x4b56_4d00, 0x4b56_4e00),
    (0xc000_0000, 0xc000_2000),
    (0xc001_0000, 0xc001_2000),
    (0x8000_0000, 0x8000_0080),
];
/// MSRs elsewhere.
const SAMPLE: usize = 1024;
/// What must stay as it is: an APIC that was switched off can't be switched on again on every machine, EFER is tried
/// bit by bit elsewhere, and microcode, SMM and the page for VMRUN of a bare machine aren't ours.
const KEPT: [u32; 7] = [0x1b, 0xc000_0080, 0x79, 0xc001_0020, 0xc001_0111, 0xc001_0112, 0xc001_0117];
/// How many numbers are written to one that can be read.
const WRITES: usize = 3;

const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];
const GP: u64 = 13;

fn read(mode: Mode, msr: u32) -> (Frame, u64) {
    let mut frame = Frame::new(mode);
    frame.gpr[RCX] = msr.into();
    let after = frame.run(mode);
    (after, after.gpr[RAX] & 0xffff_ffff | after.gpr[RDX] << 32)
}

fn write(mode: Mode, msr: u32, value: u64) -> Frame {
    let mut frame = Frame::new(mode);
    frame.gpr[RCX] = msr.into();
    frame.gpr[RAX] = value & 0xffff_ffff;
    frame.gpr[RDX] = value >> 32;
    frame.run(mode)
}

/// Ranges of MSRs that did something.
struct Ranges {
    line: Line,
    open: Option<(u32, u32)>,
}

impl Ranges {
    fn push(&mut self, msr: u32) {
        match &mut self.open {
            Some((_, last)) if *last + 1 == msr => *last = msr,
            _ => {
                self.close();
                self.open = Some((msr, msr));
            }
        }
    }

    fn close(&mut self) {
        use core::fmt::Write;
        let _ = match self.open.take() {
            None => Ok(()),
            Some((first, last)) if first == last => write!(self.line, " {first:x}"),
            Some((first, last)) => write!(self.line, " {first:x}-{last:x}"),
        };
    }
}

/// Every MSR.
pub fn msrs(options: &Options) {
    let mut random = Random::new(options.seed, "msrs");
    for mode in Mode::RULING {
        for (first, end) in RANGES {
            part(mode, first..end, &mut random, first_name(first));
        }
        let mut sample = random;
        random.next();
        part(mode, (0..SAMPLE).map(move |_| sample.next() as u32), &mut random, "sample");
    }
}

fn first_name(first: u32) -> &'static str {
    match first {
        0 => "0",
        0x4000_0000 => "40000000",
        0x4b56_4d00 => "4b564d00",
        0xc000_0000 => "c0000000",
        0xc001_0000 => "c0010000",
        _ => "80000000",
    }
}

fn part(mode: Mode, msrs: impl Iterator<Item = u32> + Clone, random: &mut Random, from: &str) {
    let (mut reads, mut writes) = (Tally::new(), Tally::new());
    let mut readable = Ranges { line: Line::new(), open: None };
    let mut writable = Ranges { line: Line::new(), open: None };
    for msr in msrs {
        place(&RDMSR);
        let (after, value) = read(mode, msr);
        reads.take(&after);
        let answers = after.vector != GP;
        if answers {
            readable.push(msr);
        }
        show(format_args!("rdmsr {msr:x}: {} {value:x}", after.outcome(mode)));
        if KEPT.contains(&msr) {
            continue;
        }
        place(&WRMSR);
        let mut took = false;
        for n in if answers { 0..WRITES } else { 1..2 } {
            let value = match n {
                0 => value,
                1 => random.next(),
                _ => random.edge(),
            };
            let after = write(mode, msr, value);
            writes.take(&after);
            show(format_args!("wrmsr {msr:x} {value:x}: {}", after.outcome(mode)));
            took |= after.vector != GP;
        }
        if took {
            writable.push(msr);
            // As it was, if it was anything.
            write(mode, msr, if answers { value } else { 0 });
        }
    }
    readable.close();
    writable.close();
    for (tally, ranges, class) in [(&reads, &readable, "msr-read"), (&writes, &writable, "msr-write")] {
        println!("hostile {class}-{from} {}: {}; taken:{}", mode.name(), tally.counts().text(), ranges.line.text());
    }
}
