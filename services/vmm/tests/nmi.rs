//! NMIs: the next waits until the handler of the last has returned, to the instruction.

mod common;

use caisson_proto::exits::code;
use caisson_proto::vcpu::{Groups, Resume};
use common::{CODE, Machine, interrupt};

const ICR: u32 = 0x830;
const TRAP: u64 = 1 << 8;
const STEP: u64 = 1 << 14;
/// EVENTINJ of an NMI.
const NMI: u64 = 1 << 31 | 2 << 8 | 2;
/// EVENTINJ of #DB.
const DEBUG: u64 = 1 << 31 | 3 << 8 | 1;
/// The exit of #DB.
const STEPPED: u16 = code::EXCEPTION + 1;

fn machine() -> Machine {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine
}

fn nmi_to_self(machine: &mut Machine) -> Resume {
    machine.wrmsr(0, ICR, 1 << 18 | 4 << 8 | 1 << 14)
}

/// The guest executes the IRET that it stands at: its RFLAGS are those that it pops.
fn iret(machine: &mut Machine, rflags: u64) -> Resume {
    machine.state(0).rip = CODE + 8;
    let resume = machine.exit(0, code::IRET, 0, 0);
    assert_eq!((resume.inject, resume.window, resume.iret), (0, false, false), "nothing before the IRET");
    assert_eq!(machine.state(0).rflags & TRAP, TRAP);
    let state = machine.state(0);
    (state.rip, state.rflags) = (CODE + 0x100, rflags);
    state.dr6 |= STEP;
    machine.exit(0, STEPPED, 0, 0)
}

#[test]
fn another_waits_for_the_iret() {
    let mut machine = machine();
    let resume = nmi_to_self(&mut machine);
    assert_eq!((resume.inject, resume.iret), (NMI, true));
    let resume = nmi_to_self(&mut machine);
    assert_eq!((resume.inject, resume.iret, resume.window), (0, true, false), "its handler runs");
    assert!(machine.exit(0, code::TIMER, 0, 0).iret);
    let dr6 = machine.state(0).dr6;
    let resume = iret(&mut machine, 2);
    assert_eq!((resume.inject, resume.iret), (NMI, true), "right after it");
    assert_eq!(machine.state(0).dr6, dr6, "the guest doesn't see the step");
    let resume = iret(&mut machine, 2);
    assert_eq!((resume.inject, resume.iret), (0, false));
}

#[test]
fn interrupts_wait_for_the_step() {
    let mut machine = machine();
    nmi_to_self(&mut machine);
    machine.state(0).rip = CODE + 8;
    machine.exit(0, code::IRET, 0, 0);
    // The guest is left before it executed the IRET.
    let resume = machine.wrmsr(0, 0x83f, 0x55);
    assert_eq!((resume.inject, resume.window), (0, false));
    let resume = machine.exit(0, STEPPED, 0, 0);
    assert_eq!(resume.inject, interrupt(0x55));
}

#[test]
fn a_step_of_the_guests_own_stays_its_own() {
    let mut machine = machine();
    nmi_to_self(&mut machine);
    machine.state(0).rflags |= TRAP;
    let resume = iret(&mut machine, 2);
    assert_eq!(resume.inject, DEBUG);
    assert_eq!(machine.state(0).dr6 & STEP, STEP);
    // And a breakpoint that the IRET hit.
    let mut machine = self::machine();
    nmi_to_self(&mut machine);
    machine.state(0).rip = CODE + 8;
    machine.exit(0, code::IRET, 0, 0);
    machine.state(0).dr6 |= STEP | 1;
    let resume = machine.exit(0, STEPPED, 0, 0);
    assert_eq!((resume.inject, machine.state(0).dr6 & (STEP | 1)), (DEBUG, 1));
    assert!(resume.groups.contains(Groups::DEBUG));
}

#[test]
fn init_ends_the_masking() {
    let mut machine = machine();
    nmi_to_self(&mut machine);
    // INIT and a start-up to itself.
    machine.wrmsr(0, ICR, 1 << 18 | 5 << 8 | 1 << 14);
    machine.wrmsr(0, ICR, 1 << 18 | 6 << 8 | 1 << 14 | 8);
    assert!(!machine.exit(0, code::KICK, 0, 0).iret);
}
