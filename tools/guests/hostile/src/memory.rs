//! The guest-physical address space: every kind of hole and a sample of addresses, read, written, executed, and as
//! tables of pages; memory beside it must keep what it has.

use caisson_guest_rt::println;

use crate::apic;
use crate::attempt::{Frame, Mode, RAX, RCX, place};
use crate::life::Options;
use crate::modes::{WINDOW, forget, window_entry, window_table};
use crate::raw::{DATA, Random, get, put};
use crate::report::{Line, Runs, Tally, show};

/// rsi in [`Frame::gpr`].
const RSI: usize = 4;
/// What is written.
const WRITTEN: u64 = 0x1122_3344_5566_7788;

/// Loads and stores by rbx, rsi or rdi; rax has the number.
const ACCESSES: [&[u8]; 31] = [
    &[0x8a, 0x03],
    &[0x66, 0x8b, 0x03],
    &[0x8b, 0x03],
    &[0x48, 0x8b, 0x03],
    &[0x0f, 0xb6, 0x03],
    &[0x0f, 0xb7, 0x03],
    &[0x48, 0x0f, 0xbe, 0x03],
    &[0x48, 0x63, 0x03],
    &[0x88, 0x03],
    &[0x66, 0x89, 0x03],
    &[0x89, 0x03],
    &[0x48, 0x89, 0x03],
    &[0xc6, 0x03, 0x5a],
    &[0x48, 0xc7, 0x03, 0x5a, 0, 0, 0],
    &[0x87, 0x03],
    &[0xf0, 0x01, 0x03],
    &[0x48, 0x0b, 0x03],
    &[0x39, 0x03],
    &[0x85, 0x03],
    &[0x80, 0x0b, 0x01],
    &[0x83, 0x23, 0x00],
    &[0x31, 0x03],
    &[0xaa],
    &[0x48, 0xab],
    &[0xac],
    &[0x48, 0xad],
    &[0xae],
    &[0xf3, 0xaa],
    &[0xf3, 0x48, 0xab],
    &[0xf3, 0xa4],
    &[0xf3, 0xac],
];

/// Where there is nothing, on a PC with 64 MiB and on Caisson: behind memory, beside each device, at the ends of the
/// address space.
const HOLES: [u64; 22] = [
    0x0400_0000,
    0x0400_0ff8,
    0x07ff_f000,
    0x8000_0000,
    0xbfff_f000,
    0xd000_0000,
    0xe000_0000,
    0xfeb0_0000,
    0xfec0_1000,
    0xfed8_0000,
    0xfedf_f000,
    0xfee0_1000 + 0x10_0000,
    0xfef1_0000,
    0xff10_0000,
    0x1_0000_0000,
    0x1_0000_0ff8,
    0x2_0000_0000,
    0x3f_ffff_f000,
    0x80_0000_0000,
    0xfc_0000_0000,
    0xfd_0000_0000 - 0x1000,
    0xff_ffff_f000,
];

fn map(gpa: u64) -> u64 {
    put(window_entry(), gpa & !0xfff | 3);
    put(window_entry() + 8, (gpa & !0xfff).wrapping_add(0x1000) | 3);
    forget(WINDOW);
    forget(WINDOW + 0x1000);
    WINDOW + (gpa & 0xfff)
}

fn access(code: &[u8], at: u64) -> Frame {
    place(code);
    let mut frame = Frame::new(Mode::Long);
    frame.gpr = [at; 15];
    (frame.gpr[RAX], frame.gpr[RCX]) = (WRITTEN, 3);
    // MOVS reads memory.
    if code == [0xf3, 0xa4] {
        frame.gpr[RSI] = DATA;
    }
    frame.run(Mode::Long)
}

/// Every access to one address; what was read is told, too.
fn accesses(gpa: u64, values: bool, tally: &mut Tally) -> Runs {
    let mut runs = Runs::new();
    for code in ACCESSES {
        let at = map(gpa);
        let after = access(code, at);
        tally.take(&after);
        show(format_args!("{gpa:x} {code:02x?}: {} {:x}", after.outcome(Mode::Long), after.gpr[RAX]));
        let mut word = Line::new();
        let rax = after.gpr[RAX];
        let read = if values && rax != WRITTEN { rax } else { 0 };
        let _ = core::fmt::Write::write_fmt(&mut word, format_args!("{}", after.outcome(Mode::Long)));
        if read != 0 {
            let _ = core::fmt::Write::write_fmt(&mut word, format_args!("={read:x}"));
        }
        runs.push(word.text());
    }
    runs
}

fn holes(random: &mut Random) {
    let mut tally = Tally::new();
    // One line for those that are alike in a row.
    let mut last: Option<(u64, Line)> = None;
    for gpa in HOLES {
        let text = accesses(gpa, true, &mut tally).text();
        let (first, same) = match last.take() {
            Some((first, same)) if same.text() == text.text() => (first, same),
            Some((first, other)) => {
                println!("hostile holes-from-{first:x} long:{}", other.text());
                (gpa, text)
            }
            None => (gpa, text),
        };
        last = Some((first, same));
    }
    if let Some((first, same)) = last {
        println!("hostile holes-from-{first:x} long:{}", same.text());
    }
    for _ in 0..64 {
        // Anywhere behind memory and before the devices, or above 4 GiB.
        let gpa = if random.below(2) == 0 {
            0x400_0000 + random.below(0xb000_0000)
        } else {
            (1 << 32) + random.below(0xf0_0000_0000)
        };
        accesses(gpa, false, &mut tally);
    }
    tally.tell("holes", Mode::Long.name());
    // Beyond the physical addresses that there are.
    let mut runs = Runs::new();
    for bit in 40..52 {
        let at = map(1 << bit);
        runs.push(access(ACCESSES[3], at).outcome(Mode::Long));
    }
    runs.tell("beyond", Mode::Long.name());
}

/// Memory takes everything and keeps it.
fn memory(random: &mut Random) {
    let mut tally = Tally::new();
    for _ in 0..32 {
        let gpa = 0x100_0000 + random.below(0x2ff_f000);
        accesses(gpa, false, &mut tally);
    }
    for gpa in [0x3ff_fff8, 0x3ff_fff0, 0xa_0000 - 8, 0x9_fff8] {
        let at = map(gpa);
        put(at, WRITTEN);
        tally.mix(get(at));
        tally.add(1);
    }
    tally.tell("memory", Mode::Long.name());
}

/// Devices: any register, any width. They are set up again afterwards.
fn devices(random: &mut Random) {
    for (page, name) in [(0xfec0_0000, "ioapic"), (0xfee0_0000, "apic")] {
        let mut tally = Tally::new();
        for _ in 0..96 {
            let offset = random.below(0x400);
            // Commands are sent elsewhere; an APIC that is off hears nothing.
            if page == 0xfee0_0000 && (0x300..0x320).contains(&offset) {
                continue;
            }
            accesses(page + offset, false, &mut tally);
        }
        tally.tell(name, Mode::Long.name());
    }
    for pin in 0..24 {
        put(0xfec0_0000, 0x10 + 2 * pin);
        put(0xfec0_0010, 0x1_0000_u32);
    }
    apic::prepare();
    apic::no_alarm();
}

/// Code where there is none: what is read there is executed.
fn execution(bare: bool, random: &mut Random) {
    let mut runs = Runs::new();
    let sample = (0..8).map(|_| (0x400_0000 + random.below(0xb000_0000)) & !0xfff);
    for gpa in HOLES.into_iter().chain(sample) {
        let at = map(gpa);
        let mut frame = Frame::new(Mode::Long);
        frame.rip = at;
        frame.gpr = [DATA; 15];
        let after = frame.run(Mode::Long);
        runs.push(format_args!("{}({:x})@{:x}", after.vector, after.error & 0xffff_ffff, after.rip - at));
    }
    runs.tell("executed", Mode::Long.name());
    if bare {
        // QEMU 7.2 ends itself where an instruction is in memory in part only.
        return;
    }
    // From memory on into the hole behind it.
    let at = map(0x3ff_f000);
    crate::raw::fill(at + 0xff0, 16, 0x90);
    let mut frame = Frame::new(Mode::Long);
    (frame.rip, frame.gpr) = (at + 0xff0, [DATA; 15]);
    let after = frame.run(Mode::Long);
    let mut runs = Runs::new();
    runs.push(format_args!("{}({:x})@{:x}", after.vector, after.error & 0xffff_ffff, after.rip - at));
    // An instruction of which a part is there: MOV eax, imm32.
    put(at + 0xffe, 0xb8_u8);
    put(at + 0xfff, 0x11_u8);
    (frame.rip, frame.gpr) = (at + 0xffe, [DATA; 15]);
    let after = frame.run(Mode::Long);
    runs.push(format_args!("{}({:x})@{:x}", after.vector, after.error & 0xffff_ffff, after.rip - at));
    runs.tell("executed-across", Mode::Long.name());
}

/// Tables of pages that lie in holes: of level 1 and of level 2.
fn page_tables() {
    let mut runs = Runs::new();
    let usual: u64 = get(window_table());
    for gpa in HOLES {
        for code in [ACCESSES[3], ACCESSES[11]] {
            put(window_table(), gpa & !0xfff | 7);
            forget(WINDOW);
            let after = access(code, WINDOW);
            let mut word = Line::new();
            let _ = core::fmt::Write::write_fmt(
                &mut word,
                format_args!("{} {:x}", after.outcome(Mode::Long), after.cr2 ^ WINDOW),
            );
            runs.push(word.text());
        }
    }
    put(window_table(), usual);
    forget(WINDOW);
    runs.tell("page-tables", Mode::Long.name());
}

/// All of it.
pub fn memory_space(options: &Options) {
    let random = &mut Random::new(options.seed, "memory");
    memory(random);
    holes(random);
    devices(random);
    execution(options.bare, random);
    page_tables();
}
