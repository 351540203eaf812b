//! Instructions that the vCPU executes itself on copies of devices' pages: what it is given, and what becomes of it.

mod common;

use caisson_proto::exits::code;
use caisson_proto::vcpu::{ExitFlags, Segment, VcpuState};
use caisson_proto::vmm::VmConfig;
use common::{CODE, Machine, PROTECTION, config};

const DEVICE: u64 = 0xff00_0000;
/// The guest's table of gates, and the selector in its gate of #GP.
const GATES: u64 = 0x38_0000;
const SELECTOR: u16 = 0x10;
const TRAP: u64 = 1 << 8;
const INTERRUPTS: u64 = 1 << 9;
/// MOVUPS from and to xmm0, at rdi.
const STORE: [u8; 3] = [0x0f, 0x11, 0x07];
const LOAD: [u8; 3] = [0x0f, 0x10, 0x07];
/// The exit of #DB.
const STEPPED: u16 = code::EXCEPTION + 1;

fn machine(vcpus: u8) -> Machine {
    let mut vm = Machine::of(&VmConfig { test_devices: true, ..config(vcpus) });
    vm.fake().memory[(GATES + 13 * 16 + 2) as usize..][..2].copy_from_slice(&SELECTOR.to_le_bytes());
    let mut boot = *vm.state(0);
    (boot.rflags, boot.dr7) = (2 | INTERRUPTS, 0x401);
    for vcpu in 0..vcpus.into() {
        *vm.state(vcpu) = boot;
        let state = vm.state(vcpu);
        state.idtr = Segment { limit: 0xfff, base: GATES, ..Segment::default() };
        state.gpr[7] = DEVICE;
    }
    vm
}

/// Memory as the vCPU sees it, by the page tables that it has now.
fn place(vm: &mut Machine, linear: u64) -> (bool, usize) {
    let mut table = vm.state(0).cr3;
    let fake = vm.fake();
    let find = |at: u64| match at.checked_sub(caisson_fuzz::guest::fake::ASIDE) {
        Some(offset) => (true, offset as usize),
        None => (false, at as usize),
    };
    for shift in [39, 30, 21, 12] {
        let (aside, at) = find(table + (linear >> shift & 511) * 8);
        let memory = if aside { &fake.aside } else { &fake.memory };
        let entry = u64::from_le_bytes(memory[at..at + 8].try_into().unwrap());
        assert_eq!(entry & 1, 1, "{linear:#x} isn't mapped");
        table = entry & 0xf_ffff_ffff_f000;
        if entry & 1 << 7 != 0 && shift != 12 {
            return find((table & !((1 << shift) - 1)) + (linear & ((1 << shift) - 1)));
        }
    }
    find(table + (linear & 0xfff))
}

fn see(vm: &mut Machine, linear: u64, length: usize) -> Vec<u8> {
    let (aside, at) = place(vm, linear);
    let memory = if aside { &vm.fake().aside } else { &vm.fake().memory };
    memory[at..at + length].to_vec()
}

fn put(vm: &mut Machine, linear: u64, bytes: &[u8]) {
    let (aside, at) = place(vm, linear);
    assert!(aside, "the guest's own memory isn't meant");
    vm.fake().aside[at..at + bytes.len()].copy_from_slice(bytes);
}

fn device(vm: &mut Machine, offset: u64) -> u64 {
    vm.state(0).gpr[7] = DEVICE + offset;
    vm.mmio(0, &[0x48, 0x8b, 0x07], DEVICE + offset);
    vm.state(0).gpr[0]
}

#[test]
fn a_vector_goes_to_a_device_and_comes_from_it() {
    let mut vm = machine(1);
    let before = *vm.state(0);
    vm.mmio(0, &STORE, DEVICE);
    let state = *vm.state(0);
    assert_eq!(state.rip, CODE);
    assert_eq!(state.rflags, 2 | TRAP, "one step, and no interrupt");
    assert_eq!((state.dr7, state.tr.attributes), (0x400, 0x8b));
    // Everything else is where it was.
    assert_eq!(see(&mut vm, CODE, 3), STORE);
    let bytes: Vec<u8> = (1..=16).collect();
    put(&mut vm, DEVICE, &bytes);
    vm.state(0).rip = CODE + 3;
    let resume = vm.exit(0, STEPPED, 0, 0);
    assert_eq!(resume.inject, 0);
    let mut after = VcpuState { shadow: 0, ..before };
    after.rip = CODE + 3;
    assert_eq!(*vm.state(0), after);
    assert_eq!(device(&mut vm, 0), 0x0807_0605_0403_0201);
    assert_eq!(device(&mut vm, 8), 0x100f_0e0d_0c0b_0a09);

    vm.state(0).gpr[7] = DEVICE;
    vm.mmio(0, &LOAD, DEVICE);
    assert_eq!(see(&mut vm, DEVICE, 16), bytes);
    vm.state(0).rip = CODE + 3;
    vm.exit(0, STEPPED, 0, 0);
    assert_eq!(device(&mut vm, 0), 0x0807_0605_0403_0201);
}

#[test]
fn an_operand_on_two_pages_is_whole() {
    let mut vm = machine(1);
    vm.state(0).gpr[7] = DEVICE + 0xfff;
    vm.state(0).gpr[0] = 0x1234;
    vm.mmio(0, &[0x66, 0x89, 0x07], DEVICE + 0xfff);
    put(&mut vm, DEVICE + 0xfff, &[0x34]);
    put(&mut vm, DEVICE + 0x1000, &[0x12]);
    vm.state(0).rip = CODE + 3;
    vm.exit(0, STEPPED, 0, 0);
    assert_eq!((device(&mut vm, 0xff8) >> 56, device(&mut vm, 0x1000) & 0xff), (0x34, 0x12));
}

#[test]
fn a_fault_is_the_guests() {
    let mut vm = machine(1);
    let before = *vm.state(0);
    vm.mmio(0, &STORE, DEVICE);
    let handlers = vm.state(0).idtr.base;
    let gate = see(&mut vm, handlers + 13 * 16, 16);
    let word = |at: usize| u64::from(u16::from_le_bytes([gate[at], gate[at + 1]]));
    let handler = word(0) | word(6) << 16 | word(8) << 32 | word(10) << 48;
    assert_eq!((word(2), word(4)), (u64::from(SELECTOR), 0x8e01));
    assert_eq!(see(&mut vm, handler, 1), [0xf4]);
    // As the CPU does: on the stack of the task state segment, an error code and five words more.
    let task = vm.state(0).tr.base;
    let stack = u64::from_le_bytes(see(&mut vm, task + 0x24, 8).try_into().unwrap());
    put(&mut vm, stack - 48, &0_u64.to_le_bytes());
    vm.state(0).rip = handler;
    vm.state(0).gpr[4] = stack - 48;
    let resume = vm.exit(0, code::HLT, 0, 0);
    assert_eq!(resume.inject, PROTECTION);
    const RESUME: u64 = 1 << 16;
    let mut after = before;
    (after.rip, after.rflags) = (CODE, before.rflags | RESUME);
    assert_eq!(*vm.state(0), after);
    assert_eq!(device(&mut vm, 0), 0, "nothing was written");
}

#[test]
fn one_vcpu_at_a_time() {
    let mut vm = machine(2);
    vm.wrmsr(0, 0x1b, 0xfee0_0900 | 1 << 10);
    vm.wrmsr(0, 0x830, 1 << 32 | 0x4500);
    vm.wrmsr(0, 0x830, 1 << 32 | 0x4600);
    let boot = *vm.state(0);
    *vm.state(1) = boot;
    vm.mmio(0, &STORE, DEVICE);
    assert_ne!(vm.state(0).cr3, boot.cr3);
    vm.mmio(1, &STORE, DEVICE);
    assert_eq!((vm.state(1).cr3, vm.state(1).rip), (boot.cr3, CODE), "it comes back");
    // INIT takes the first out of it: vCPU 1 sends it.
    vm.wrmsr(1, 0x1b, 0xfee0_0800 | 1 << 10);
    vm.wrmsr(1, 0x830, 0x4500);
    vm.exit(0, code::KICK, 0, 0);
    vm.state(1).gpr[7] = DEVICE;
    vm.mmio(1, &STORE, DEVICE);
    assert_ne!(vm.state(1).cr3, boot.cr3);
}

#[test]
fn interrupts_wait_for_the_step() {
    let mut vm = machine(1);
    vm.x2apic(0);
    vm.wrmsr(0, 0x832, 0x4_00ef);
    vm.wrmsr(0, 0x6e0, 1 << 20);
    vm.state(0).gpr[7] = DEVICE;
    vm.mmio(0, &STORE, DEVICE);
    vm.fake().time.set(1 << 30);
    // Its own TSC deadline passes.
    let resume = vm.exit_with(0, code::TIMER, 0, 0, ExitFlags::INJECTED);
    assert_eq!((resume.inject, resume.window, resume.rip), (0, false, CODE));
    vm.state(0).rip = CODE + 3;
    let resume = vm.exit_with(0, STEPPED, 0, 0, ExitFlags::INJECTED);
    assert!(resume.window, "it waits for the guest to allow it");
}

#[test]
fn a_guests_own_step_ends_in_its_trap() {
    let mut vm = machine(1);
    vm.state(0).rflags |= TRAP;
    vm.mmio(0, &STORE, DEVICE);
    vm.state(0).rip = CODE + 3;
    let resume = vm.exit_with(0, STEPPED, 0, 0, ExitFlags::INJECTED | ExitFlags::TRAP);
    assert_eq!(resume.inject, 1 << 31 | 3 << 8 | 1);
    assert_eq!(vm.state(0).dr6 >> 14 & 1, 1);
    assert_eq!(vm.state(0).rflags, 2 | INTERRUPTS | TRAP);
}

#[test]
fn what_cant_be_executed_aside_ends_the_vm() {
    // PUSHF would show the step; without gates there is no place for faults.
    for (code, gates) in [(&[0x9c][..], GATES), (&STORE, 0x39_0000)] {
        let mut vm = machine(1);
        vm.state(0).idtr.base = gates;
        vm.state(0).gpr[4] = DEVICE + 8;
        vm.mmio(0, code, DEVICE);
        assert!(vm.vmm.is_over(), "{code:x?}");
    }
}
