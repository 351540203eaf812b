//! Exceptions that go through the vmm: what their frames must say, and what becomes of an event that one broke off.

mod common;

use caisson_proto::exits::code;
use caisson_proto::supervisor::{CrashKind, ExitKind};
use caisson_proto::vcpu::{ExitFlags, Groups, Resume};
use common::{CODE, Machine, PROTECTION};
use proptest::prelude::*;

const VALID: u64 = 1 << 31;
const EXCEPTION: u64 = VALID | 3 << 8;
const ERROR_CODE: u64 = 1 << 11;
const RESUME: u64 = 1 << 16;
const DOUBLE_FAULT: u64 = EXCEPTION | ERROR_CODE | 8;

/// The guest raises this at a NOP; so far this event was on its way.
fn raised(machine: &mut Machine, vector: u16, error: u64, pending: u64) -> Resume {
    machine.code(0, &[0x90; 16]);
    machine.state(0).event = pending;
    let waits = if pending == 0 { ExitFlags::empty() } else { ExitFlags::EVENT_PENDING };
    machine.exit_with(0, code::EXCEPTION + vector, error, 0, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED | waits)
}

#[test]
fn a_fault_pushes_rf() {
    for (vector, error) in
        [(6, None), (10, Some(0x48)), (11, Some(0x10a)), (12, Some(0)), (13, Some(0x20)), (17, Some(0))]
    {
        let mut machine = Machine::new(1);
        machine.state(0).gpr[0] = 77;
        let resume = raised(&mut machine, vector, error.unwrap_or(0), 0);
        let code = error.map_or(0, |error| ERROR_CODE | error << 32);
        assert_eq!((resume.inject, resume.replace), (EXCEPTION | u64::from(vector) | code, false));
        let state = machine.state(0);
        assert_eq!((state.rflags & RESUME, state.rip, state.gpr[0]), (RESUME, CODE, 77), "vector {vector}");
    }
    // And one of the vmm's own.
    let mut machine = Machine::new(1);
    machine.state(0).gpr[7] = 0x1234;
    assert_eq!(machine.wrmsr(0, 0x1234_5678, 9).inject, PROTECTION);
    let state = machine.state(0);
    assert_eq!((state.rflags & RESUME, state.rip, state.gpr[0], state.gpr[7]), (RESUME, CODE, 9, 0x1234));
}

#[test]
fn a_trap_pushes_none() {
    let mut machine = Machine::new(1);
    let resume = raised(&mut machine, 1, 0, 0);
    assert_eq!((resume.inject, resume.groups), (EXCEPTION | 1, Groups::empty()));
    // A step that the vmm owes.
    machine.code(0, &[0x0f, 0x09]);
    let flags = ExitFlags::INJECTED | ExitFlags::TRAP;
    let resume = machine.exit_with(0, code::WBINVD, 0, 0, flags);
    assert_eq!((resume.inject, machine.state(0).rflags & RESUME), (EXCEPTION | 1, 0));
}

#[test]
fn real_mode_has_no_error_codes() {
    let mut machine = Machine::new(1);
    machine.state(0).cr0 &= !1;
    let resume = raised(&mut machine, 13, 5, 0);
    assert_eq!((resume.inject, machine.state(0).rflags & RESUME), (EXCEPTION | 13, RESUME));
    assert_eq!(machine.wrmsr(0, 0x1234_5678, 0).inject, EXCEPTION | 13);
}

#[test]
fn svm_isn_t_there_whatever_else_is_wrong_with_its_instructions() {
    for (bytes, vector) in [
        (&[0x0f, 0x01, 0xd8][..], 6),
        (&[0x0f, 0x01, 0xdf], 6),
        (&[0xf0, 0x66, 0x48, 0x0f, 0x01, 0xda], 6),
        (&[0x0f, 0x01, 0xd0], 13),
        (&[0x0f, 0x01, 0xd9], 13),
        (&[0x0f, 0x30], 13),
        (&[0x66; 15], 13),
    ] {
        let mut machine = Machine::new(1);
        machine.code(0, bytes);
        let resume = machine.exit(0, code::EXCEPTION + 13, 0, 0);
        assert_eq!(resume.inject & 0xff, vector, "{bytes:x?}");
        assert_eq!(resume.inject & ERROR_CODE != 0, vector == 13);
    }
}

#[test]
fn what_cannot_be_delivered_is_not_delivered_for_ever() {
    for pending in [VALID | 0x20, VALID | 2 << 8 | 2, VALID | 4 << 8 | 0x80, EXCEPTION | 6, EXCEPTION | 1] {
        let resume = raised(&mut Machine::new(1), 13, 0x102, pending);
        assert_eq!((resume.inject, resume.replace), (EXCEPTION | ERROR_CODE | 13 | 0x102 << 32, true), "{pending:#x}");
    }
}

#[test]
fn faults_in_faults_are_double() {
    let mut machine = Machine::new(1);
    let resume = raised(&mut machine, 11, 0x6a, EXCEPTION | ERROR_CODE | 13);
    assert_eq!((resume.inject, resume.replace), (DOUBLE_FAULT, true));
    assert_eq!(machine.state(0).rflags & RESUME, 0, "#DF is no fault");
    assert_eq!(raised(&mut machine, 13, 0, EXCEPTION | ERROR_CODE | 14).inject, DOUBLE_FAULT);
    assert!(!machine.vmm.is_over());
    raised(&mut machine, 13, 0, DOUBLE_FAULT);
    let (kind, words) = machine.fake().ended.unwrap();
    assert_eq!((kind, words[0]), (ExitKind::Crashed, CrashKind::TripleFault as u64));
}

#[test]
fn a_trap_does_not_take_an_events_place() {
    let mut machine = Machine::new(1);
    let resume = raised(&mut machine, 1, 0, VALID | 0x20);
    assert_eq!((resume.inject, resume.replace), (0, false), "what was broken off comes first");
    // Nor does an interrupt, nor an event that is told of with another exit.
    machine.state(0).event = EXCEPTION | 14;
    let flags = ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED | ExitFlags::EVENT_PENDING;
    let resume = machine.exit_with(0, code::KICK, 0, 0, flags);
    assert_eq!((resume.inject, resume.replace), (0, false));
}

/// Rows and columns of APM volume 2, table 8-5: benign, contributory, page fault.
fn class(vector: u16) -> usize {
    match vector {
        0 | 10..=13 => 1,
        14 => 2,
        _ => 0,
    }
}

proptest! {
    /// Every pair, as the table has it.
    #[test]
    fn pairs_are_as_the_manual_says(kind in 0..8_u64, first in 0..256_u64, second in 0..32_u16, error: u32) {
        prop_assume!(!matches!(second, 1 | 3 | 4 | 8 | 18) && first != 8);
        const DOUBLE: [[bool; 3]; 3] = [[false; 3], [false, true, false], [false, true, true]];
        let pending = VALID | kind << 8 | first;
        let resume = raised(&mut Machine::new(1), second, error.into(), pending);
        let of_first = if kind == 3 && first < 32 { class(first as u16) } else { 0 };
        if DOUBLE[of_first][class(second)] {
            prop_assert_eq!(resume.inject, DOUBLE_FAULT);
        } else {
            prop_assert_eq!(resume.inject & (EXCEPTION | 0xff), EXCEPTION | u64::from(second));
        }
        prop_assert!(resume.replace);
    }
}
