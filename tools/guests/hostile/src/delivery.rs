//! Faults while an event is delivered: gates, code segments, stacks and task states that are bad, and what that becomes.

use crate::attempt::{Frame, Mode, place};
use crate::life::Options;
use crate::modes::{
    CODE64, DATA, FREE, GDT, IDT32, IDT64, TSS, WINDOW, forget, gate64, load_task, usual_gate, usual_gates, usual_gdt,
    usual_task, window_entry,
};
use crate::raw::{get, put};
use crate::report::{Runs, Tally, show};
use crate::stubs;

/// An address that isn't canonical.
const UNCANONICAL: u64 = 0x8000_1234_5678_9000;
/// Nothing is mapped here.
const UNMAPPED: u64 = 0x7f_1234_5000;

/// What makes an event, and its vector.
const TRIGGERS: [(&str, &[u8], u64); 6] = [
    ("int", &[0xcd, 0x21], 0x21),
    ("ud", &[0x0f, 0x0b], 6),
    ("divide", &[0x31, 0xc9, 0xf7, 0xf1], 0),
    // mov rax, [UNMAPPED]
    ("page", &[0x48, 0xa1, 0x00, 0x50, 0x34, 0x12, 0x7f, 0x00, 0x00, 0x00], 14),
    // mov rax, [UNCANONICAL]
    ("protection", &[0x48, 0xa1, 0x00, 0x90, 0x78, 0x56, 0x34, 0x12, 0x00, 0x80], 13),
    ("debug", &[0xf1], 1),
];

/// Bad gates by name: selector, IST, type, and the address if not the usual.
const GATES: [(&str, u64, u64, u64, u64); 18] = [
    ("absent", CODE64, 1, 0x0e, 0),
    ("no-type", CODE64, 1, 0x80, 0),
    ("call-gate", CODE64, 1, 0x8c, 0),
    ("task-gate", CODE64, 1, 0x85, 0),
    ("old-gate", CODE64, 1, 0x86, 0),
    ("trap-gate", CODE64, 1, 0x8f, 0),
    ("null", 0, 1, 0x8e, 0),
    ("data", DATA, 1, 0x8e, 0),
    ("beyond", 0x1000, 1, 0x8e, 0),
    ("local", 0x0c, 1, 0x8e, 0),
    ("absent-code", FREE, 1, 0x8e, 0),
    ("code-32", 0x18, 1, 0x8e, 0),
    ("user-code", 0x30, 1, 0x8e, 0),
    ("both-sizes", FREE + 8, 1, 0x8e, 0),
    ("uncanonical", CODE64, 1, 0x8e, UNCANONICAL),
    ("unmapped", CODE64, 1, 0x8e, UNMAPPED),
    ("stack-uncanonical", CODE64, 2, 0x8e, 0),
    ("stack-unmapped", CODE64, 3, 0x8e, 0),
];

fn bad_gate(vector: u64, (_, selector, stack, kind, at): (&str, u64, u64, u64, u64)) {
    let usual = &raw const stubs::hostile_stubs64 as u64 + 16 * vector;
    put(IDT64.at() + 16 * vector, gate64(if at == 0 { usual } else { at }, selector, stack, kind));
}

/// Each bad gate for each event; then with the gate of what that becomes bad, too: a double fault.
fn gates() {
    let gdt = GDT.at();
    put(gdt + FREE, 0x00af_1b00_0000_ffff_u64);
    put(gdt + FREE + 8, 0x00ef_9b00_0000_ffff_u64);
    put(TSS.at() + 44, UNCANONICAL);
    put(TSS.at() + 52, UNMAPPED);
    let mut tally = Tally::new();
    for (trigger, code, vector) in TRIGGERS {
        // A handler of page faults that isn't mapped faults for ever; so does one of #GP that isn't canonical, on QEMU.
        let endless = [("page", "unmapped"), ("protection", "uncanonical")];
        for gate in GATES.into_iter().filter(|gate| !endless.contains(&(trigger, gate.0))) {
            let mut runs = Runs::new();
            place(code);
            for second in [None, Some(8), Some(10), Some(11), Some(12), Some(13), Some(14)] {
                // With #DF's own gate bad it would be the end, if #DF came.
                if second == Some(8) || second == Some(vector) {
                    continue;
                }
                bad_gate(vector, gate);
                if let Some(second) = second {
                    bad_gate(second, GATES[0]);
                }
                let after = Frame::new(Mode::Long).run(Mode::Long);
                usual_gates();
                tally.take(&after);
                runs.push(after.outcome(Mode::Long));
                show(format_args!("{trigger} {} {second:?}: {}", gate.0, after.outcome(Mode::Long)));
            }
            let mut class = crate::report::Line::new();
            let _ = core::fmt::Write::write_fmt(&mut class, format_args!("delivery-{trigger}-{}", gate.0));
            runs.tell(class.text(), Mode::Long.name());
        }
    }
    tally.total("delivery", Mode::Long.name());
    usual_gdt();
    usual_task();
    crate::modes::reload_task();
}

/// A table that ends too early, for each vector that it doesn't have.
fn short_table() {
    let mut runs = Runs::new();
    for limit in [0x10f_u16, 0x20f, 0x210, 0x21e] {
        put(0xb130, limit);
        place(&[0x0f, 0x01, 0x1c, 0x25, 0x30, 0xb1, 0x00, 0x00, 0xcd, 0x21]);
        runs.push(Frame::new(Mode::Long).run(Mode::Long).outcome(Mode::Long));
        put(0xb130, 4095_u16);
        place(&[0x0f, 0x01, 0x1c, 0x25, 0x30, 0xb1, 0x00, 0x00, 0xcc]);
        Frame::new(Mode::Long).run(Mode::Long);
    }
    runs.tell("delivery-short-table", Mode::Long.name());
}

/// From ring 3, onto stacks of ring 0 that are none.
fn from_user() {
    let mut runs = Runs::new();
    let gate = usual_gate(0x21);
    for (stack, dpl) in [(UNMAPPED, 3), (UNCANONICAL, 3), (0, 3), (u64::MAX - 7, 3), (UNMAPPED, 0)] {
        put(TSS.at() + 4, stack);
        // No IST; callable by users or not.
        put(IDT64.at() + 0x210, [gate[0] & !(7 << 32) | dpl << 45, gate[1]]);
        place(&[0xcd, 0x21]);
        runs.push(Frame::new(Mode::User64).run(Mode::User64).outcome(Mode::User64));
        usual_gates();
        usual_task();
    }
    runs.tell("delivery-from-user", Mode::User64.name());
    // A task state so short that it has no IST: #TS needs a gate without one.
    let mut runs = Runs::new();
    for limit in [0x20_u64, 0x24, 0x2a, 0x2b] {
        let entry = GDT.at() + 0x48;
        put(entry, get::<u64>(entry) & !0xffff & !(0xff << 40) | 0x89 << 40 | limit);
        load_task();
        let gate = usual_gate(10);
        put(IDT64.at() + 0xa0, [gate[0] & !(7 << 32), gate[1]]);
        let bp = usual_gate(3);
        put(IDT64.at() + 0x30, [bp[0] & !(7 << 32), bp[1]]);
        place(&[0xcd, 0x21]);
        let mut frame = Frame::new(Mode::Long);
        frame.rsp = &raw const stubs::hostile_ist_top as u64;
        let after = frame.run(Mode::Long);
        runs.push(after.outcome(Mode::Long));
        usual_gdt();
        usual_gates();
        crate::modes::reload_task();
    }
    runs.tell("delivery-short-task", Mode::Long.name());
}

/// A stack of which the window's page is read-only, or ends: the push faults.
fn onto_pages() {
    let mut runs = Runs::new();
    for (entry, offset) in [(crate::raw::DATA | 3, 0), (crate::raw::DATA | 3, 8), (crate::raw::DATA | 3, 40), (0, 64)] {
        put(window_entry(), entry);
        forget(WINDOW);
        put(TSS.at() + 44, WINDOW + offset);
        let gate = usual_gate(0x21);
        put(IDT64.at() + 0x210, [gate[0] & !(7 << 32) | 2 << 32, gate[1]]);
        place(&[0xcd, 0x21]);
        runs.push(Frame::new(Mode::Long).run(Mode::Long).outcome(Mode::Long));
        usual_gates();
        usual_task();
    }
    runs.tell("delivery-onto-page", Mode::Long.name());
}

/// Protected mode: bad gates, and from ring 3 bad stacks.
fn protected() {
    let mut tally = Tally::new();
    let mut runs = Runs::new();
    let entry = IDT32.at() + 8 * 0x21;
    let usual: u64 = get(entry);
    for mode in [Mode::Protected, Mode::User32] {
        for (kind, selector) in [
            (0xee, 0x18),
            (0x6e, 0x18),
            (0xe0, 0x18),
            (0xec, 0x18),
            (0x8e, 0x18),
            (0xee, 0),
            (0xee, 0x10),
            (0xee, 0x1000),
            (0xee, 0x23),
        ] {
            // To ring 3 from ring 3: QEMU, which knows no limit of a segment, would run whatever lies there.
            if mode == Mode::User32 && selector == 0x23 {
                continue;
            }
            put(entry, usual & !0xff00_ffff_0000 | selector << 16 | kind << 40);
            place(&[0xcd, 0x21]);
            let after = Frame::new(mode).run(mode);
            tally.take(&after);
            runs.push(after.outcome(mode));
        }
    }
    put(entry, usual);
    runs.tell("delivery-gate", Mode::Protected.name());
    tally.total("delivery", Mode::Protected.name());
}

/// All of it.
pub fn delivery(_options: &Options) {
    gates();
    short_table();
    from_user();
    onto_pages();
    protected();
}
