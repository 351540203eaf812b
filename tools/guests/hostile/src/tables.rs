//! Wild descriptors, control and debug registers: what the CPU takes, and what it refuses.

use crate::attempt::{Frame, Mode, RAX, RCX, RDX, place};
use crate::life::Options;
use crate::modes::{FREE, GDT, GDT_ENTRIES, reload_task};
use crate::raw::{CODE, DATA, Random, put};
use crate::report::{Line, Runs, Tally, show};

/// CR0: paging, protection, what QEMU keeps of the FPU. Without them the code that looks is lost.
const CR0_KEPT: u64 = 1 << 31 | 1;
/// CR0: not write-through. CD is the bit above it.
const NW: u64 = 1 << 29;
/// CR4 without PAE is refused in long mode; with PCID or LA57 it depends on the CPU, which is asked.
const CR4_KEPT: u64 = 1 << 5;

/// Garbage in the GDT behind our own descriptors, and every way to use it.
fn descriptors(random: &mut Random) {
    // mov ds/es/ss/fs/gs, eax; lar, lsl, verr, verw, lldt; far call, far jump and far return by what is at rbx
    const USES: [(&str, &[u8]); 13] = [
        ("ds", &[0x8e, 0xd8]),
        ("es", &[0x8e, 0xc0]),
        ("ss", &[0x8e, 0xd0]),
        ("fs", &[0x8e, 0xe0]),
        ("gs", &[0x8e, 0xe8]),
        ("lar", &[0x0f, 0x02, 0xc8]),
        ("lsl", &[0x0f, 0x03, 0xc8]),
        ("verr", &[0x0f, 0x00, 0xe0]),
        ("verw", &[0x0f, 0x00, 0xe8]),
        ("lldt", &[0x0f, 0x00, 0xd0]),
        ("call", &[0xff, 0x1b]),
        ("jump", &[0xff, 0x2b]),
        ("return", &[0xca, 0x00, 0x00]),
    ];
    for mode in [Mode::Long, Mode::Protected, Mode::User64, Mode::Compatible] {
        for (name, code) in USES {
            let mut tally = Tally::new();
            for n in 0..48 {
                let selector = descriptor(random, mode, name, n);
                // Where it jumps to there are breakpoints; call gates lead where they like.
                put(DATA, (CODE + 0x50 - mode.base()) as u32);
                put(DATA + 4, selector as u32);
                put(DATA + 8, 0_u64);
                place(code);
                let mut frame = Frame::new(mode);
                frame.gpr = [DATA - mode.base(); 15];
                frame.gpr[RAX] = selector;
                if name == "return" {
                    frame.rsp = DATA - mode.base();
                }
                let after = frame.run(mode);
                tally.take(&after);
                tally.mix(after.rflags & 0x40);
                show(format_args!("{} {name} {selector:x}: {}", mode.name(), after.outcome(mode)));
                // What was loaded stays nowhere: selectors are loaded anew, and there is no LDT.
                place(&[0x31, 0xc0, 0x0f, 0x00, 0xd0]);
                Frame::new(Mode::Long).run(Mode::Long);
            }
            let mut class = Line::new();
            let _ = core::fmt::Write::write_fmt(&mut class, format_args!("descriptor-{name}"));
            tally.tell(class.text(), mode.name());
        }
    }
    reload_task();
}

/// Puts a random descriptor somewhere behind ours; its selector, or one that is wrong in itself.
fn descriptor(random: &mut Random, mode: Mode, how: &str, n: u64) -> u64 {
    let place = FREE + 8 * random.below(GDT_ENTRIES - FREE / 8 - 2);
    let mut low = random.next();
    if n.is_multiple_of(2) {
        // One that could do: its base is 0 and its limit all.
        low = low & (0x00f0_ff00 << 32) | 0x000f_0000_0000_ffff;
    }
    let kind = low >> 40 & 0x1f;
    let is_far = matches!(how, "call" | "jump" | "return");
    // Task switches are an end of their own, and so are jumps to 16-bit gates: their handlers would see another stack.
    if is_far && kind & 0x10 == 0 || is_far && mode != Mode::User64 && mode != Mode::Long && low >> 54 & 1 == 0 {
        low |= 1 << 44 | 1 << 54;
    }
    if is_far {
        // Base 0: the breakpoints are where they are. And no 16-bit segment of long mode's compatibility.
        low = low & 0x00ff_ff00_0000_ffff | 1 << 54;
    }
    put(GDT.at() + place, low);
    put(GDT.at() + place + 8, random.below(2) * random.next());
    match random.below(6) {
        0 => place + 4,
        1 => place | 3,
        2 => random.below(0x1_0000),
        _ => place,
    }
}

/// What is moved to a control register by `code` from rax: its bits one by one, then any.
fn control(mode: Mode, name: &str, code: &[u8], base: u64, kept: u64, random: &mut Random) {
    let mut runs = Runs::new();
    // NW without CD is #GP. Bare QEMU 7.2 takes it.
    let no_quirk = |value: u64| if name == "cr0" { value | (value & NW) << 1 } else { value };
    place(code);
    let one = |value: u64| {
        let mut frame = Frame::new(mode);
        frame.gpr[RAX] = value;
        let after = frame.run(mode);
        show(format_args!("{} {name} {value:x}: {}", mode.name(), after.outcome(mode)));
        after.outcome(mode)
    };
    let bits = if matches!(mode, Mode::Long | Mode::User64) { 64 } else { 32 };
    (0..bits).filter(|bit| kept >> bit & 1 == 0).for_each(|bit| runs.push(one(no_quirk(base ^ 1 << bit))));
    runs.tell(name, mode.name());
    let mut tally = Tally::new();
    for _ in 0..64 {
        let value = no_quirk(random.edge() & !kept | base & kept);
        place(code);
        let mut frame = Frame::new(mode);
        frame.gpr[RAX] = value;
        tally.take(&frame.run(mode));
    }
    let mut class = Line::new();
    let _ = core::fmt::Write::write_fmt(&mut class, format_args!("{name}-any"));
    tally.tell(class.text(), mode.name());
}

fn registers(bare: bool, random: &mut Random) {
    // Bare QEMU 7.2 jumps to a wild address where reserved bits of CR3 and CR4 should be #GP.
    let (cr3_kept, cr4_kept) = if bare { (!0xfff, !0x35_0fdf) } else { (0xff_ffff_f000, 0) };
    let (cr0, cr3, cr4): (u64, u64, u64) = (crate::raw::get(0xb108), crate::raw::get(0xb110), crate::raw::get(0xb118));
    control(Mode::Long, "cr0", &[0x0f, 0x22, 0xc0], cr0, CR0_KEPT, random);
    control(Mode::Protected, "cr0", &[0x0f, 0x22, 0xc0], cr0 & !(1 << 31), CR0_KEPT, random);
    control(Mode::Real, "cr0", &[0x0f, 0x22, 0xc0], cr0 & !CR0_KEPT, CR0_KEPT, random);
    control(Mode::Long, "cr4", &[0x0f, 0x22, 0xe0], cr4, CR4_KEPT | cr4_kept, random);
    control(Mode::Protected, "cr4", &[0x0f, 0x22, 0xe0], cr4, cr4_kept, random);
    control(Mode::Real, "cr4", &[0x0f, 0x22, 0xe0], cr4, cr4_kept, random);
    without_pae();
    // Other bits of an address would lead to other tables.
    control(Mode::Long, "cr3", &[0x0f, 0x22, 0xd8], cr3, cr3_kept, random);
    control(Mode::Long, "cr2", &[0x0f, 0x22, 0xd0], 0, 0, random);
    control(Mode::Long, "cr8", &[0x44, 0x0f, 0x22, 0xc0], 0, 0, random);
    control(Mode::Long, "dr6", &[0x0f, 0x23, 0xf0], 0, 0, random);
    // Without the breakpoints themselves.
    control(Mode::Long, "dr7", &[0x0f, 0x23, 0xf8, 0x31, 0xc0, 0x0f, 0x23, 0xf8], 0x400, 0x20ff, random);
    control(Mode::Long, "dr0", &[0x0f, 0x23, 0xc0], 0, 0, random);
    control(Mode::Long, "lmsw", &[0x0f, 0x01, 0xf0], cr0, 0, random);
    for mode in [Mode::User64, Mode::User32] {
        control(mode, "cr0", &[0x0f, 0x22, 0xc0], cr0, 0, random);
        control(mode, "cr8", &[0x0f, 0x22, 0xe0], 0, 0, random);
    }
    efer_and_xcr0(random);
    place(&[0x31, 0xc0, 0x0f, 0x23, 0xf8, 0x0f, 0x23, 0xc0, 0x44, 0x0f, 0x22, 0xc0]);
    Frame::new(Mode::Long).run(Mode::Long);
}

/// Long mode enabled, neither paging nor PAE, and a thousand exits meanwhile: QEMU's exits from there lose the host.
fn without_pae() {
    // mov eax, cr4; btr eax, 5; mov cr4, eax; mov esi, 1000; again: xor eax, eax; cpuid; dec esi; jnz again
    // mov eax, cr4; bts eax, 5; mov cr4, eax
    place(&[
        0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xf0, 5, 0x0f, 0x22, 0xe0, 0xbe, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x0f, 0xa2, 0x4e,
        0x75, 0xf9, 0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xe8, 5, 0x0f, 0x22, 0xe0,
    ]);
    let mut runs = Runs::new();
    runs.push(Frame::new(Mode::Protected).run(Mode::Protected).outcome(Mode::Protected));
    runs.tell("no-pae", Mode::Protected.name());
}

fn efer_and_xcr0(random: &mut Random) {
    let efer = 0x500_u64;
    let mut tally = Tally::new();
    for mode in [Mode::Long, Mode::Protected, Mode::Real] {
        let mut runs = Runs::new();
        // Long mode must be there again afterwards.
        for value in
            (0..64).filter(|bit| *bit != 8).map(|bit| efer ^ 1 << bit).chain((0..32).map(|_| random.edge() | 0x100))
        {
            let mut frame = Frame::new(mode);
            (frame.gpr[RAX], frame.gpr[RDX], frame.gpr[RCX]) = (value & 0xffff_ffff, value >> 32, 0xc000_0080);
            place(&[0x0f, 0x30]);
            let after = frame.run(mode);
            tally.take(&after);
            runs.push(after.outcome(mode));
            (frame.gpr[RAX], frame.gpr[RDX]) = (0x100, 0);
            frame.run(mode);
        }
        runs.tell("efer", mode.name());
    }
    let mut runs = Runs::new();
    for value in (0..64).map(|bit| 1 | 1 << bit).chain((0..32).map(|_| random.edge())) {
        // mov cr4 with OSXSAVE first; index 0.
        place(&[0x0f, 0x22, 0xe6, 0x0f, 0x01, 0xd1, 0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xd1]);
        let mut frame = Frame::new(Mode::Long);
        (frame.gpr[RAX], frame.gpr[RDX], frame.gpr[RCX]) = (value & 0xffff_ffff, value >> 32, 0);
        frame.gpr[4] = crate::raw::get::<u64>(0xb118) | 1 << 18;
        let after = frame.run(Mode::Long);
        tally.take(&after);
        runs.push(after.outcome(Mode::Long));
    }
    runs.tell("xcr0", Mode::Long.name());
    tally.total("efer-xcr0", "all");
}

/// All of it.
pub fn tables(options: &Options) {
    let random = &mut Random::new(options.seed, "tables");
    descriptors(random);
    registers(options.bare, random);
}
