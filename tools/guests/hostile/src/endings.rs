//! What may end a VM: each is a life of its own, chosen by `end=NAME`.

use core::arch::asm;

use caisson_guest_rt::cpu::{halt, outb};
use caisson_guest_rt::println;

use crate::attempt::{Frame, Mode, RAX, TRAP, attempt, place};
use crate::life::Options;
use crate::modes::{IDT64, TSS, WINDOW, forget, gate64, window_entry};
use crate::raw::{CODE, DATA, Random, fill, put};
use crate::stubs;

/// There is neither memory nor a device.
const HOLE: u64 = 0xd000_0000;
/// Streams of a wild life.
const STREAMS: u64 = 30_000;

fn hole() -> u64 {
    put(window_entry(), HOLE | 7);
    forget(WINDOW);
    WINDOW
}

/// Random bytes with every right. What they change stays changed.
fn wild(mode: Mode, options: &Options) {
    let mut random = Random::new(options.seed, "wild");
    for _ in 0..STREAMS {
        fill(CODE, 0x1000, 0xcc);
        let mut bytes = [0_u8; 32];
        bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
        let at = random.below(3) as usize;
        if random.below(4) == 0 {
            bytes[at] = 0x0f;
            bytes[at + 1] = [0x00, 0x01, 0x22, 0x23, 0x30, 0x32, 0xae, 0xc7][random.below(8) as usize];
        }
        place(&bytes);
        let mut frame = Frame::new(mode);
        frame.gpr.iter_mut().for_each(|register| *register = random.edge());
        frame.rflags |= TRAP;
        frame.run(mode);
    }
}

/// Ends as its name says. What comes back here survived.
pub fn end(name: &str, options: &Options) -> ! {
    println!("hostile ends by {name}");
    let mut value = 0;
    match name {
        "exit" => {}
        "wild-64" => wild(Mode::Long, options),
        "wild-16" => wild(Mode::Real, options),
        "wild-32" => wild(Mode::Protected, options),
        "triple" => {
            put(0xb130, 0_u16);
            attempt(Mode::Long, &[0x0f, 0x01, 0x1c, 0x25, 0x30, 0xb1, 0, 0, 0x0f, 0x0b]);
        }
        "idt-hole" => {
            put(0xb132, hole());
            attempt(Mode::Long, &[0x0f, 0x01, 0x1c, 0x25, 0x30, 0xb1, 0, 0, 0x0f, 0x0b]);
        }
        "stack-hole" => {
            put(TSS.at() + 44, hole() + 0x800);
            let usual = &raw const stubs::hostile_stubs64 as u64 + 16 * 6;
            put(IDT64.at() + 16 * 6, gate64(usual, 8, 2, 0x8e));
            attempt(Mode::Long, &[0x0f, 0x0b]);
        }
        "gdt-hole" => {
            put(0xb122, hole());
            attempt(Mode::Long, &[0x0f, 0x01, 0x14, 0x25, 0x20, 0xb1, 0, 0, 0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8]);
        }
        "tables-hole" => {
            // SAFETY: nothing is mapped any more: this is the end.
            unsafe { asm!("mov cr3, {}", in(reg) HOLE) };
        }
        "vector-hole" => {
            // vmovups ymm0, [window]; SSE where AVX isn't switched on: movups xmm0, [window]
            hole();
            let mut frame = Frame::new(Mode::Long);
            place(&[0x0f, 0x22, 0xe0, 0x0f, 0x10, 0x03]);
            frame.gpr[RAX] = crate::raw::get::<u64>(0xb118) | 0x600;
            frame.gpr[1] = WINDOW;
            frame.run(Mode::Long);
        }
        "call-hole" => {
            let mut frame = Frame::new(Mode::Long);
            frame.gpr[1] = hole();
            place(&[0xff, 0x13]);
            frame.run(Mode::Long);
        }
        "task-switch" => {
            // A far jump to the task state itself, and before that to another one.
            put(DATA, 0_u32);
            put(DATA + 4, 0x60_u16);
            put(crate::modes::GDT.at() + 0x60, 0x67 | DATA << 16 | 0x89 << 40);
            attempt(Mode::Protected, &[0xff, 0x2d, 0x00, 0x20, 0x01, 0x00]);
        }
        "halt" => {
            attempt(Mode::Long, &[0xf4]);
        }
        "paging-off" => {
            // mov rax, cr0; btr rax, 31; mov cr0, rax; then whatever comes
            attempt(Mode::Long, &[0x0f, 0x20, 0xc0, 0x48, 0x0f, 0xba, 0xf0, 0x1f, 0x0f, 0x22, 0xc0]);
        }
        "keyboard" => outb(0x64, 0xfe),
        "reset" => outb(0xcf9, 6),
        "off" => outb(0x604, 0x34),
        "panic" => outb(0x505, 1),
        _ => {
            println!("hostile has no such end");
            value = 1;
        }
    }
    println!("hostile end");
    outb(0xf4, value);
    halt()
}
