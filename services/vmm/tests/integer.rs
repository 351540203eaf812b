//! Integer instructions on device memory, against what a CPU made of them.

mod common;

use caisson_proto::vmm::VmConfig;
use common::{CODE, Machine, config};

const DEVICE: u64 = 0xff00_0000;
/// CF PF AF ZF SF OF.
const FLAGS: u64 = 0x8d5;
const RESULTS: &str = include_str!("integer.txt");

#[test]
fn results_and_flags_are_those_of_a_cpu() {
    let mut vm = Machine::of(&VmConfig { test_devices: true, ..config(1) });
    let number = |word: &str| u64::from_str_radix(word, 16).unwrap();
    let mut checked = 0;
    for line in RESULTS.lines().filter(|line| !line.starts_with('#')) {
        let (code, numbers) = line.split_once(' ').unwrap();
        let code: Vec<u8> = (0..code.len()).step_by(2).map(|at| number(&code[at..at + 2]) as u8).collect();
        let numbers: Vec<u64> = numbers.split(' ').map(number).collect();
        let (before, after, undefined) = (&numbers[..6], &numbers[6..12], numbers[12]);
        // All of it is written and read by one instruction each.
        let state = vm.state(0);
        state.gpr[0] = before[5];
        vm.mmio(0, &[0x48, 0x89, 0x07], DEVICE);
        let state = vm.state(0);
        state.gpr[..4].copy_from_slice(&before[..4]);
        (state.gpr[7], state.rflags) = (DEVICE, before[4]);
        vm.mmio(0, &code, DEVICE);
        assert!(!vm.vmm.is_over(), "{line}: not emulated");
        let state = vm.state(0);
        assert_eq!(state.rip, CODE + code.len() as u64, "{line}");
        assert_eq!(state.gpr[..4], after[..4], "{line}");
        assert_eq!(state.rflags & FLAGS & !undefined, after[4] & FLAGS & !undefined, "{line}");
        vm.mmio(0, &[0x48, 0x8b, 0x07], DEVICE);
        assert_eq!(vm.state(0).gpr[0], after[5], "{line}: memory");
        checked += 1;
    }
    assert!(checked > 200);
}

#[test]
fn selectors_and_the_machine_status_word_are_stored() {
    let mut vm = Machine::of(&VmConfig { test_devices: true, ..config(1) });
    vm.state(0).segments[3].selector = 0x1234;
    vm.mmio(0, &[0x8c, 0x1f], DEVICE);
    let cr0 = vm.state(0).cr0;
    vm.mmio(0, &[0x0f, 0x01, 0x67, 0x02], DEVICE + 2);
    vm.mmio(0, &[0x8b, 0x07], DEVICE);
    assert_eq!(vm.state(0).gpr[0], 0x1234 | (cr0 & 0xffff) << 16);
}
