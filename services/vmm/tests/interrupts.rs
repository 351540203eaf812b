//! Local APICs, the I/O APIC, timers and starts of processors, as a guest sees them.

mod common;

use caisson_proto::exits::code;
use caisson_proto::supervisor::{CrashKind, ExitKind};
use caisson_proto::vcpu::{Action, ExitFlags, Groups};
use common::{KHZ, Machine, PROTECTION, interrupt};

const ICR: u32 = 0x830;
const EOI: u32 = 0x80b;
const DEADLINE: u32 = 0x6e0;

fn tsc_deadline(machine: &mut Machine, vector: u8, ticks: u64) -> u64 {
    machine.wrmsr(0, 0x832, 0x4_0000 | u64::from(vector));
    let now = machine.rdmsr(0, 0x10).unwrap();
    let resume = machine.wrmsr(0, DEADLINE, now + ticks);
    resume.deadline
}

#[test]
fn halt_parks_until_the_deadline_and_the_timer_interrupts() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    let deadline = tsc_deadline(&mut machine, 0xec, 50_000);
    let resume = machine.halt(0);
    assert_eq!((resume.action, resume.deadline, resume.inject), (Action::Park, deadline, 0));

    machine.fake().time.set(deadline);
    let resume = machine.exit(0, code::TIMER, 0, 0);
    assert_eq!((resume.action, resume.inject, resume.deadline), (Action::Run, interrupt(0xec), 0));
    assert_eq!(machine.rdmsr(0, 0x817).unwrap() >> (0xec & 31) & 1, 1, "in service");
    machine.wrmsr(0, EOI, 0);
    assert_eq!(machine.rdmsr(0, 0x817).unwrap(), 0);
}

#[test]
fn an_early_kick_parks_again() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    let deadline = tsc_deadline(&mut machine, 0xec, 50_000);
    machine.halt(0);
    let resume = machine.exit(0, code::KICK, 0, 0);
    assert_eq!((resume.action, resume.deadline), (Action::Park, deadline));
}

#[test]
fn a_past_deadline_fires_at_once() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine.wrmsr(0, 0x832, 0x4_00ec);
    let resume = machine.wrmsr(0, DEADLINE, 1);
    assert_eq!((resume.inject, resume.deadline), (interrupt(0xec), 0));
}

#[test]
fn interrupts_wait_for_the_guest() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    tsc_deadline(&mut machine, 0xec, 1000);
    machine.fake().time.set(1 << 40);
    for blocked in [ExitFlags::INJECTED, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED | ExitFlags::SHADOW] {
        let resume = machine.exit_with(0, code::TIMER, 0, 0, blocked);
        assert_eq!((resume.inject, resume.window), (0, true));
    }
    let pending = ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED | ExitFlags::EVENT_PENDING;
    let resume = machine.exit_with(0, code::KICK, 0, 0, pending);
    assert_eq!((resume.inject, resume.window), (0, true), "never beside an event that is being delivered");
    let resume = machine.exit(0, code::VINTR, 0, 0);
    assert_eq!((resume.inject, resume.window), (interrupt(0xec), false));
}

#[test]
fn a_window_inside_a_shadow_waits_for_its_end() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    tsc_deadline(&mut machine, 0xec, 1000);
    machine.fake().time.set(1 << 40);
    let shadow = ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED | ExitFlags::SHADOW;
    let resume = machine.exit_with(0, code::TIMER, 0, 0, shadow);
    assert_eq!((resume.inject, resume.window), (0, true));
    let resume = machine.exit_with(0, code::VINTR, 0, 0, shadow);
    assert_eq!((resume.inject, resume.window), (0, false));
    assert!(resume.deadline.wrapping_sub(1 << 40) < KHZ / 10, "soon");
    assert_eq!(machine.halt(0).inject, interrupt(0xec), "STI; HLT");
}

#[test]
fn an_event_that_was_not_entered_with_is_injected_again() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine.wrmsr(0, ICR, 0x4_0000 | 0x50);
    let lost = machine.exit_with(0, code::KICK, 0, 0, ExitFlags::INTERRUPTS_ON | ExitFlags::EVENT_PENDING);
    assert_eq!(lost.inject, interrupt(0x50));
    assert_eq!(machine.exit(0, code::KICK, 0, 0).inject, 0, "and not twice");
}

#[test]
fn priorities_hold_back_lower_classes() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    assert_eq!(machine.wrmsr(0, ICR, 0x4_0000 | 0x60).inject, interrupt(0x60), "self");
    let lower = machine.wrmsr(0, ICR, 0x4_0000 | 0x5f);
    assert_eq!((lower.inject, lower.window), (0, false), "0x60 is in service");
    assert_eq!(machine.wrmsr(0, ICR, 0x4_0000 | 0x70).inject, interrupt(0x70), "nested");
    assert_eq!(machine.rdmsr(0, 0x80a).unwrap(), 0x70, "processor priority");
    assert_eq!(machine.wrmsr(0, EOI, 0).inject, 0);
    assert_eq!(machine.wrmsr(0, EOI, 0).inject, interrupt(0x5f));
    machine.wrmsr(0, EOI, 0);
    machine.wrmsr(0, 0x808, 0x80);
    assert_eq!(machine.wrmsr(0, ICR, 0x4_0000 | 0x80).inject, 0, "task priority");
    assert_eq!(machine.wrmsr(0, 0x808, 0).inject, interrupt(0x80));
}

#[test]
fn destinations_and_shorthands_reach_who_they_name() {
    let cases: [(u64, &[u8]); 8] = [
        (2 << 32, &[2]),
        (0xffff_ffff << 32, &[1, 2, 3]),
        (9 << 32, &[]),
        (1 << 11 | 0b1100 << 32, &[2, 3]),
        (1 << 11 | (1 << 16 | 1) << 32, &[]),
        (2 << 18, &[1, 2, 3]),
        (3 << 18, &[1, 2, 3]),
        (1 << 18, &[]),
    ];
    for (icr, expected) in cases {
        let mut machine = running(4);
        let resume = machine.wrmsr(0, ICR, icr | 0x40);
        assert_eq!(machine.fake().kicks, expected, "{icr:#x}");
        let to_self = matches!(icr >> 18 & 3, 1 | 2) || icr >> 32 == 0xffff_ffff;
        assert_eq!(resume.inject != 0, to_self, "{icr:#x}");
        for &vcpu in expected {
            assert_eq!(machine.exit(vcpu, code::KICK, 0, 0).inject, interrupt(0x40));
        }
    }
}

/// A machine whose processors all run, in x2APIC mode.
fn running(vcpus: u8) -> Machine {
    let mut machine = Machine::new(vcpus);
    machine.x2apic(0);
    for vcpu in 1..vcpus {
        machine.wrmsr(0, ICR, u64::from(vcpu) << 32 | 0x4500);
        machine.wrmsr(0, ICR, u64::from(vcpu) << 32 | 0x4600 | 0x9a);
        let boot = *machine.state(0);
        *machine.state(vcpu.into()) = boot;
        machine.x2apic(vcpu);
    }
    machine.fake().kicks.clear();
    machine
}

#[test]
fn a_kick_is_sent_once_until_it_arrives() {
    let mut machine = running(2);
    machine.wrmsr(0, ICR, 1 << 32 | 0x40);
    machine.wrmsr(0, ICR, 1 << 32 | 0x41);
    assert_eq!(machine.fake().kicks, [1]);
    machine.exit(1, code::KICK, 0, 0);
    machine.wrmsr(0, ICR, 1 << 32 | 0x42);
    assert_eq!(machine.fake().kicks, [1, 1]);
}

#[test]
fn lowest_priority_goes_to_one() {
    let mut machine = running(3);
    machine.wrmsr(1, 0x808, 0x20);
    machine.wrmsr(0, ICR, 1 << 11 | 1 << 8 | 0b110 << 32 | 0x40);
    assert_eq!(machine.fake().kicks, [2]);
}

#[test]
fn processors_start_in_real_mode() {
    let mut machine = Machine::new(2);
    machine.x2apic(0);
    machine.wrmsr(0, ICR, 1 << 32 | 0x4600 | 0x9a);
    assert_eq!(machine.fake().runs, [1], "INIT isn't needed after power-on");
    let state = machine.state(1);
    assert_eq!((state.rip, state.segments[1].base, state.segments[1].selector), (0, 0x9_a000, 0x9a00));
    assert_eq!((state.cr0 & 1, state.efer, state.tsc_offset), (0, 0, 5001_u64.wrapping_neg()));
    machine.wrmsr(0, ICR, 1 << 32 | 0x4600 | 0x10);
    assert_eq!(machine.fake().runs, [1], "a running one ignores it");
}

#[test]
fn init_stops_a_running_processor_and_a_later_start_runs_it() {
    let mut machine = running(2);
    machine.fake().runs.clear();
    machine.wrmsr(0, ICR, 1 << 32 | 0x4500);
    assert_eq!(machine.exit(1, code::KICK, 0, 0).action, Action::Stop);
    machine.wrmsr(0, ICR, 1 << 32 | 0x4600 | 0x9b);
    assert_eq!(machine.fake().runs, [1]);

    machine.wrmsr(0, ICR, 1 << 32 | 0x4500);
    machine.wrmsr(0, ICR, 1 << 32 | 0x4600 | 0x33);
    let resume = machine.exit(1, code::KICK, 0, 0);
    assert_eq!((resume.action, resume.groups), (Action::Run, Groups::all()), "both came before its exit");
    assert_eq!(machine.state(1).segments[1].base, 0x3_3000);
    assert_eq!(machine.fake().runs, [1]);
}

#[test]
fn an_nmi_wakes_a_halted_processor() {
    let mut machine = running(2);
    machine.code(1, &[0xf4]);
    machine.exit_with(1, code::HLT, 0, 0, ExitFlags::INJECTED);
    machine.wrmsr(0, ICR, 1 << 32 | 0x4400);
    let resume = machine.exit_with(1, code::KICK, 0, 0, ExitFlags::INJECTED);
    assert_eq!((resume.action, resume.inject), (Action::Run, 1 << 31 | 2 << 8 | 2));
}

#[test]
fn halted_for_ever_is_a_crash() {
    let mut machine = running(2);
    machine.code(1, &[0xf4]);
    machine.exit_with(1, code::HLT, 0, 0, ExitFlags::INJECTED);
    assert_eq!(machine.fake().ended, None, "the other one can still wake it");
    machine.code(0, &[0xf4]);
    assert_eq!(machine.exit_with(0, code::HLT, 0, 0, ExitFlags::INJECTED).action, Action::Stop);
    let (kind, words) = machine.fake().ended.unwrap();
    assert_eq!((kind, words[0]), (ExitKind::Crashed, CrashKind::Hung as u64));
    assert!(machine.vmm.is_over());
    assert_eq!(machine.exit(0, code::KICK, 0, 0).action, Action::Stop);
}

#[test]
fn the_shared_word_ends_interrupts_without_an_exit() {
    const WORD: u64 = 0x10_0000;
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine.wrmsr(0, 0x4b56_4d04, WORD | 1);
    machine.wrmsr(0, ICR, 0x4_0000 | 0x50);
    assert_eq!(machine.fake().memory[WORD as usize], 1, "nothing else waits: the guest may end it alone");
    machine.wrmsr(0, ICR, 0x4_0000 | 0x41);
    assert_eq!(machine.fake().memory[WORD as usize], 0, "something waits: it must tell");
    assert_eq!(machine.wrmsr(0, EOI, 0).inject, interrupt(0x41));
    assert_eq!(machine.fake().memory[WORD as usize], 1);
    machine.fake().memory[WORD as usize] = 0;
    assert_eq!(machine.wrmsr(0, ICR, 0x4_0000 | 0x40).inject, interrupt(0x40), "0x41 has ended");
}

#[test]
fn a_hypercall_sends_to_many() {
    let mut machine = running(4);
    machine.code(0, &[0x0f, 0x01, 0xd9]);
    let state = machine.state(0);
    (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2], state.gpr[6]) = (10, 0b1110, 0, 0, 0xfd);
    let resume = machine.exit(0, code::VMMCALL, 0, 0);
    assert_eq!((resume.rax, machine.fake().kicks.as_slice()), (3, &[1, 2, 3][..]));
    assert_eq!(machine.exit(3, code::KICK, 0, 0).inject, interrupt(0xfd));

    machine.code(0, &[0x0f, 0x01, 0xd9]);
    machine.state(0).gpr[0] = 999;
    assert_eq!(machine.exit(0, code::VMMCALL, 0, 0).rax, -1000_i64 as u64);
}

#[test]
fn forbidden_apic_accesses_are_protection_faults() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.wrmsr(0, ICR, 0).inject, PROTECTION, "not in x2APIC mode");
    machine.x2apic(0);
    assert_eq!(machine.rdmsr(0, 0x80b), Err(PROTECTION), "EOI can't be read");
    assert_eq!(machine.wrmsr(0, EOI, 1).inject, PROTECTION);
    assert_eq!(machine.wrmsr(0, 0x803, 0).inject, PROTECTION, "version can't be written");
    assert_eq!(machine.wrmsr(0, 0x1b, 0xfee0_0900).inject, PROTECTION, "x2APIC to xAPIC");
}

#[test]
fn the_apic_timer_counts_and_repeats() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine.wrmsr(0, 0x83e, 0xb);
    machine.wrmsr(0, 0x832, 0x2_0031);
    let deadline = machine.wrmsr(0, 0x838, 1000).deadline;
    let left = machine.rdmsr(0, 0x839).unwrap();
    assert!((990..1000).contains(&left), "a 16th of the TSC: {left}");
    machine.fake().time.set(deadline);
    let resume = machine.exit(0, code::TIMER, 0, 0);
    assert_eq!((resume.inject, resume.deadline), (interrupt(0x31), deadline + 16_000));
    machine.wrmsr(0, EOI, 0);
    machine.fake().time.set(deadline + 168_000);
    assert_eq!(machine.exit(0, code::TIMER, 0, 0).deadline, deadline + 176_000, "missed periods are lost");
    assert_eq!(machine.wrmsr(0, 0x838, 0).deadline, 0);
}

/// Writes an I/O APIC register by `mov [rax], ecx`.
fn ioapic(machine: &mut Machine, register: u8, value: u32) {
    machine.state(0).gpr[1] = register.into();
    machine.mmio(0, &[0x89, 0x08], 0xfec0_0000);
    machine.state(0).gpr[1] = value.into();
    machine.mmio(0, &[0x89, 0x08], 0xfec0_0010);
}

#[test]
fn the_serial_port_interrupts_through_the_io_apic() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    ioapic(&mut machine, 0x10 + 2 * 4, 0x24);
    machine.outb(0x3fc, 8);
    machine.outb(0x3f9, 1);
    assert_eq!(machine.vmm.console_input(b"x"), 1);
    assert_eq!(machine.exit(0, code::KICK, 0, 0).inject, interrupt(0x24));
    assert_eq!((machine.inb(0x3fa) & 0xf, machine.inb(0x3fd) & 1, machine.inb(0x3f8)), (4, 1, b'x'));
    assert_eq!(machine.inb(0x3fa) & 0xf, 1, "nothing any more");
}

#[test]
fn level_triggered_pins_come_again_until_they_are_served() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    ioapic(&mut machine, 0x10 + 2 * 4, 0x8024);
    machine.outb(0x3fc, 8);
    machine.outb(0x3f9, 1);
    machine.vmm.console_input(b"x");
    assert_eq!(machine.exit(0, code::KICK, 0, 0).inject, interrupt(0x24));
    assert_eq!(machine.exit(0, code::KICK, 0, 0).inject, 0);
    assert_eq!(machine.wrmsr(0, EOI, 0).inject, interrupt(0x24));
    machine.inb(0x3f8);
    assert_eq!(machine.wrmsr(0, EOI, 0).inject, 0);
}

#[test]
fn legacy_interrupts_come_through_the_8259_pair() {
    let mut machine = Machine::new(1);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        machine.outb(port, value);
    }
    // Channel 0, mode 2, 1193 input ticks: a millisecond.
    machine.outb(0x43, 0x34);
    machine.outb(0x40, 0xa9);
    let resume = machine.outb(0x40, 0x04);
    let due = resume.deadline;
    assert!((KHZ * 9 / 10..KHZ * 11 / 10).contains(&(due - machine.fake().time.get())));
    machine.fake().time.set(due);
    assert_eq!(machine.exit(0, code::TIMER, 0, 0).inject, interrupt(0x30));
    machine.fake().time.set(due + 3 * KHZ);
    assert_eq!(machine.exit(0, code::TIMER, 0, 0).inject, 0, "not before its end");
    assert_eq!(machine.outb(0x20, 0x20).inject, interrupt(0x30));
}

#[test]
fn a_single_step_over_an_emulated_instruction_traps() {
    let mut machine = Machine::new(1);
    machine.code(0, &[0x0f, 0xa2]);
    let flags = ExitFlags::TRAP | ExitFlags::INJECTED;
    let resume = machine.exit_with(0, code::CPUID, 0, 0, flags);
    assert_eq!((resume.inject, resume.rip), (1 << 31 | 3 << 8 | 1, common::CODE + 2));
    assert_eq!(machine.state(0).dr6 >> 14 & 1, 1);
    let resume = machine.exit_with(0, code::KICK, 0, 0, flags);
    assert_eq!(resume.inject, 0, "nothing was executed");
}
