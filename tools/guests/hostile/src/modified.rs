//! Code that changes itself: the instruction that comes next, one that lies across two pages, and by an alias.

use crate::attempt::{Frame, Mode, RAX, RCX, place};
use crate::life::Options;
use crate::modes::{WINDOW, forget, window_entry};
use crate::raw::{CODE, Random, fill, put, put_bytes};
use crate::report::Tally;

/// Adds up, in eax, numbers that the code itself writes into an ADD's immediate, `ecx` times; from `start` on.
fn accumulate(mode: Mode, start: u64, alias: u64) -> Frame {
    // mov [rbx], cl; add eax, imm8 (sign-extended); dec ecx; jnz back; int3. By an alias a serializing instruction is
    // due in between (APM volume 2, section 7.6.1): mov cr2, rdx.
    let (code, immediate): (&[u8], u64) = if alias != 0 {
        (&[0x88, 0x0b, 0x0f, 0x22, 0xd2, 0x83, 0xc0, 0x00, 0xff, 0xc9, 0x75, 0xf4, 0xcc], 7)
    } else if mode == Mode::Real {
        (&[0x88, 0x0f, 0x66, 0x83, 0xc0, 0x00, 0xff, 0xc9, 0x75, 0xf6, 0xcc], 5)
    } else {
        (&[0x88, 0x0b, 0x83, 0xc0, 0x00, 0xff, 0xc9, 0x75, 0xf7, 0xcc], 4)
    };
    put_bytes(start, code);
    let mut frame = Frame::new(mode);
    frame.rip = start - mode.base();
    frame.gpr[RCX] = 500;
    frame.gpr[1] = if alias == 0 { start + immediate - mode.base() } else { alias + ((start + immediate) & 0xfff) };
    frame.run(mode)
}

/// In each mode, at every place across the boundary of two pages.
pub fn modified(options: &Options) {
    let mut random = Random::new(options.seed, "modified");
    for mode in Mode::ALL {
        let mut tally = Tally::new();
        place(&[]);
        fill(CODE, 0x2000, 0xcc);
        for back in 0..16 {
            let after = accumulate(mode, CODE + 0x1000 - back, 0);
            tally.take(&after);
            tally.mix(after.gpr[RAX]);
        }
        tally.tell("modified", mode.name());
    }
    // By another virtual address; the window shows the page of the code.
    let mut tally = Tally::new();
    for _ in 0..16 {
        put(window_entry(), CODE | 7);
        forget(WINDOW);
        let after = accumulate(Mode::Long, CODE + random.below(0x800), WINDOW);
        tally.take(&after);
        tally.mix(after.gpr[RAX]);
    }
    tally.tell("modified-alias", Mode::Long.name());
    // The rest of a string instruction's own loop: REP STOSB over the code that runs it.
    for mode in Mode::ALL {
        let mut tally = Tally::new();
        fill(CODE, 0x2000, 0xcc);
        place(&[0xf3, 0xaa, 0x90, 0x90, 0x90, 0x90]);
        let mut frame = Frame::new(mode);
        // Turns the NOPs behind it into INC-like no-ops of another kind: 0xf8 is CLC.
        frame.gpr[RAX] = 0xf8;
        frame.gpr[RCX] = 0x20;
        frame.gpr[5] = CODE + 2 - mode.base();
        let after = frame.run(mode);
        tally.take(&after);
        tally.mix(after.rip);
        tally.tell("modified-string", mode.name());
    }
}
