//! Storms of interrupts: IPIs of every mode, INIT and start-up, NMIs, timers and lines, between two CPUs.

use core::arch::global_asm;

use caisson_guest_rt::cpu::outb;
use caisson_guest_rt::println;

use crate::apic;
use crate::attempt::{Frame, INTERRUPTS, Mode, place};
use crate::life::Options;
use crate::raw::{Random, get, put};

/// Where the other CPU starts, and where what it starts as stands: a page that halts.
const START: u64 = 0x7000;
const HALT: u64 = 0x5000;
/// What the other CPU counts: its loops, and its interrupts.
const BEATS: u64 = 0x7f00;
const TAKEN: u64 = 0x7f04;
/// Its interrupt descriptors.
const OTHER_IDT: u64 = 0x6000;
/// Messages of a storm.
const MESSAGES: u64 = 1500;

// The other CPU goes to protected mode with the GDT of the first and a table of its own, in which every vector counts.
global_asm!(
    r#"
    .section .rodata.hostile, "a", @progbits
    .balign 16
    .global hostile_other
hostile_other:
    .code16
    cli
    xor ax, ax
    mov ds, ax
    lgdt [0xb120]
    lidt [0x7f10]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0xea
    .word hostile_other32 - hostile_other + 0x7000, 0x18
    .code32
hostile_other32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, 0x5ff0
    mov dword ptr [0xfee000f0], 0x1ff
    mov dword ptr [0xfee00350], 0x10000
    mov dword ptr [0xfee00360], 0x10000
    sti
2:  lock inc dword ptr [0x7f00]
    pause
    jmp 2b
    .global hostile_other_handler
hostile_other_handler:
    lock inc dword ptr [0x7f04]
    mov dword ptr [0xfee000b0], 0
    iretd
    .global hostile_other_end
hostile_other_end:
    .code64
"#
);

unsafe extern "C" {
    static hostile_other: u8;
    static hostile_other_handler: u8;
    static hostile_other_end: u8;
}

fn prepare() {
    let (code, end) = (&raw const hostile_other as u64, &raw const hostile_other_end as u64);
    (0..end - code).for_each(|n| put(START + n, get::<u8>(code + n)));
    let handler = &raw const hostile_other_handler as u64 - code + START;
    for vector in 0..256 {
        put(OTHER_IDT + 8 * vector, handler & 0xffff | 0x18 << 16 | 0x8e << 40);
    }
    put(0x7f10, 2047_u16);
    put(0x7f12, OTHER_IDT);
    put(HALT, [0xfa_u8, 0xf4, 0xeb, 0xfd]);
}

const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// Starts the other CPU, whatever it was doing; whether it came.
fn start() -> bool {
    apic::send(INIT, 1);
    apic::wait(1000);
    put(BEATS, 0_u32);
    for _ in 0..20 {
        apic::send(STARTUP | (START >> 12) as u32, 1);
        for _ in 0..500 {
            if get::<u32>(BEATS) != 0 {
                return true;
            }
            apic::wait(1000);
        }
    }
    false
}

/// Whether the other CPU still runs, started again if need be.
fn tell(kind: &str, messages: u64) {
    let alive = start();
    println!(
        "hostile storm-{kind} long: {messages} messages, the other CPU {}",
        if alive { "starts" } else { "is lost" }
    );
}

/// Fixed, lowest priority and reserved messages, with any vector, to anybody in any way.
fn messages(options: &Options, random: &mut Random) {
    let mut own = 0;
    for n in 0..MESSAGES {
        let mode = match random.below(8) {
            0 => 1,
            1 => 3,
            // SMM and the 8259 are a bare machine's own.
            2 if !options.bare => 2,
            3 if !options.bare => 7,
            _ => 0,
        };
        let vector = random.below(256) as u32;
        let shorthand = random.below(4) as u32;
        let command = vector | mode << 8 | (random.next() as u32 & 0xc800) | shorthand << 18;
        apic::send(command, [0, 1, 0xff, random.next() as u8][random.below(4) as usize]);
        if n % 16 == 0 {
            own += apic::settle();
        }
    }
    own += apic::settle();
    println!("hostile total storm-messages long: {own} taken here, {} there", get::<u32>(TAKEN));
    tell("messages", MESSAGES);
}

/// NMIs: many to the other CPU, some to this one from inside an attempt.
fn nmis() {
    for _ in 0..MESSAGES {
        apic::send(0x4400, 1);
    }
    let mut own = 0;
    for _ in 0..64 {
        // mov [rbx], eax, and time enough
        place(&[0x89, 0x03, 0xb9, 0x00, 0x10, 0, 0, 0xe2, 0xfe]);
        let mut frame = Frame::new(Mode::Long);
        frame.gpr[0] = 0x4_4400;
        frame.gpr[1] = 0xfee0_0300;
        let after = frame.run(Mode::Long);
        own += u64::from(after.vector == 2);
    }
    println!("hostile storm-nmis-here long: {own} of 64");
    tell("nmis", MESSAGES);
}

/// INIT and start-up in any order, at any time.
fn starts(random: &mut Random) {
    for _ in 0..MESSAGES / 4 {
        let page = if random.below(3) == 0 { HALT } else { START };
        match random.below(5) {
            0 | 1 => apic::send(INIT, 1),
            // With the level deasserted it is no INIT.
            2 => apic::send(0x8500, 1),
            _ => apic::send(STARTUP | (page >> 12) as u32, 1),
        }
        if random.below(8) == 0 {
            apic::wait(random.below(200) as u32);
        }
    }
    tell("starts", MESSAGES / 4);
}

/// A timer that fires without end, and lines that change without end.
fn timers_and_lines(random: &mut Random) {
    let mut taken = 0;
    apic::write(0x320, apic::ALARM | 1 << 17);
    apic::write(0x380, 20_000);
    for _ in 0..1000 {
        if taken >= 10 {
            break;
        }
        place(&[0xb9, 0x00, 0x00, 0x10, 0, 0xe2, 0xfe]);
        let mut frame = Frame::new(Mode::Long);
        frame.rflags |= INTERRUPTS;
        let vector = frame.run(Mode::Long).vector;
        taken += u64::from(vector == u64::from(apic::ALARM));
        apic::write(0xb0, 0);
    }
    apic::no_alarm();
    println!("hostile total storm-timer long: {taken} taken");
    println!("hostile storm-timer long: {}", if taken >= 10 { "it fires" } else { "it doesn't fire" });
    for _ in 0..24 {
        for pin in 0..16_u32 {
            let entry = (0x20 + random.below(0xd0) as u32) | (random.next() as u32 & 0xa100);
            put(0xfec0_0000, 0x10 + 2 * pin);
            put(0xfec0_0010, entry);
            put(0xfec0_0000, 0x11 + 2 * pin);
            put(0xfec0_0010, random.below(2) as u32 * 0x0100_0000);
        }
        for _ in 0..40 {
            outb(0x2000 + random.below(16) as u16, random.below(2) as u8);
        }
        apic::settle();
    }
    for pin in 0..24_u32 {
        put(0xfec0_0000, 0x10 + 2 * pin);
        put(0xfec0_0010, 0x1_0000_u32);
        if pin < 16 {
            outb(0x2000 + pin as u16, 0);
        }
    }
    apic::settle();
    tell("lines", 24 * 40);
}

/// All of them.
pub fn storms(options: &Options) {
    let random = &mut Random::new(options.seed, "storms");
    prepare();
    apic::prepare();
    tell("none", 0);
    messages(options, random);
    nmis();
    starts(random);
    timers_and_lines(random);
    // It rests.
    apic::send(INIT, 1);
    apic::wait(1000);
    apic::settle();
}
