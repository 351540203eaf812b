//! A run from its options to its end.

use core::sync::atomic::Ordering;

use caisson_guest_rt::cpu::inb;
use caisson_guest_rt::{cmdline, entry, println};

use crate::report::SHOWN;
use crate::{apic, delivery, endings, instructions, memory, modes, modified, msrs, ports, storms, streams, tables};

/// The seed, if none is given.
const SEED: u64 = 0xca15_5011;

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where all numbers come from.
    pub seed: u64,
    /// The machine is no VM of Caisson's.
    pub bare: bool,
    /// Every port by every width in every mode.
    pub all: bool,
}

type Part = (&'static str, fn(&Options));

const PARTS: &[Part] = &[
    ("instructions", instructions::instructions),
    ("streams", streams::streams),
    ("modified", modified::modified),
    ("delivery", delivery::delivery),
    ("tables", tables::tables),
    ("memory", memory::memory_space),
    ("storms", storms::storms),
    ("msrs", msrs::msrs),
    ("ports", ports::ports),
];

fn option(name: &str) -> Option<&'static str> {
    cmdline().split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn main() -> ! {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let seed = option("seed").and_then(number).unwrap_or(SEED);
    let (wanted, shown) = (option("parts"), option("show"));
    let options = Options { seed, bare: option("machine") == Some("bare"), all: option("ports") == Some("all") };
    modes::prepare();
    apic::prepare();
    ports::quiet();
    println!("hostile seed {seed:#x}");
    while option("go").is_some() && inb(0x3fd) & 1 == 0 {
        apic::rest();
    }
    for (name, part) in PARTS {
        if wanted.is_some_and(|wanted| !wanted.split(',').any(|one| one == *name)) {
            continue;
        }
        SHOWN.store(shown == Some(name), Ordering::Relaxed);
        println!("hostile begins {name}");
        part(&options);
        println!("hostile ended {name}");
    }
    endings::end(option("end").unwrap_or("exit"), &options)
}

entry!(main);
