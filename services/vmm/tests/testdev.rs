//! The devices of test programs.

mod common;

use caisson_proto::exits::code;
use caisson_proto::supervisor::ExitKind;
use caisson_proto::vcpu::Action;
use caisson_vmm::Vmm;
use common::{FACTS, Fake, MIB, Machine, bzimage, config};

fn machine(vcpus: u8) -> Machine {
    let mut config = config(vcpus);
    config.test_devices = true;
    let mut machine = Machine::new(vcpus);
    machine.vmm = Vmm::new(Fake::new(32 * MIB, vcpus), &config, &bzimage(&[0x90; 4096]), b"", FACTS).unwrap();
    machine
}

fn port(machine: &mut Machine, port: u16, bytes: u64, write: Option<u32>) -> u32 {
    machine.state(0).gpr[0] = u64::from(write.unwrap_or(0));
    let next = machine.state(0).rip + 1;
    let info = u64::from(port) << 16 | bytes << 4 | u64::from(write.is_none());
    machine.exit(0, code::IOIO, info, next);
    machine.state(0).gpr[0] as u32
}

fn item(machine: &mut Machine, key: u32, bytes: usize) -> Vec<u8> {
    port(machine, 0x510, 2, Some(key));
    (0..bytes).map(|_| port(machine, 0x511, 1, None) as u8).collect()
}

#[test]
fn the_debug_exit_ends_the_vm_with_its_value() {
    let mut vm = machine(1);
    port(&mut vm, 0xf4, 4, Some(0x1234_5678));
    assert_eq!(vm.fake().ended, Some((ExitKind::TestEnded, [0x1234_5678, 0, 0, 0])));
    assert_eq!(vm.outb(0x80, 0).action, Action::Stop);

    let mut without = Machine::new(1);
    port(&mut without, 0xf4, 4, Some(0));
    assert_eq!(without.fake().ended, None, "only where the file asks for it");
}

#[test]
fn the_register_takes_every_width() {
    let mut vm = machine(1);
    port(&mut vm, 0xe0, 4, Some(0x8765_4321));
    assert_eq!(port(&mut vm, 0xe0, 1, None), 0x21);
    assert_eq!(port(&mut vm, 0xe2, 2, None), 0x8765);
    port(&mut vm, 0xe9, 1, Some(0xff));
    assert_eq!(port(&mut vm, 0xe8, 4, None), 0x8765_ff21);
    port(&mut vm, 0xe4, 4, Some(0x1000));
    assert_eq!(port(&mut vm, 0xe0, 4, None), 0x8765_ff21);
}

#[test]
fn fw_cfg_tells_of_the_machine() {
    let mut vm = machine(3);
    assert_eq!(item(&mut vm, 0, 6), *b"QEMU\0\0");
    assert_eq!(item(&mut vm, 3, 8), (32 * MIB).to_le_bytes());
    assert_eq!(item(&mut vm, 5, 2), [3, 0]);
    assert_eq!(item(&mut vm, 0x11, 4), [0; 4], "an item that there isn't");
}

#[test]
fn device_memory_keeps_what_is_written() {
    let mut vm = machine(1);
    vm.state(0).gpr[1] = 0x1122_3344_5566_7788;
    vm.mmio(0, &[0x48, 0x89, 0x0b], 0xff00_fffc);
    vm.mmio(0, &[0x48, 0x89, 0x0b], 0xff00_0008);
    vm.mmio(0, &[0x8b, 0x03], 0xff00_000a);
    assert_eq!(vm.state(0).gpr[0], 0x3344_5566);
    vm.mmio(0, &[0x48, 0x8b, 0x03], 0xff00_fffc);
    assert_eq!(vm.state(0).gpr[0], 0x5566_7788, "what would be beyond the end is zero");
}

#[test]
fn lines_reach_the_io_apic() {
    let mut vm = machine(1);
    vm.wrmsr(0, 0x1b, 0xfee0_0900);
    vm.x2apic(0);
    // Pin 14: vector 0x45, edge, to APIC 0.
    for (register, value) in [(0x10 + 28, 0x45), (0x11 + 28, 0)] {
        vm.state(0).gpr[0] = register;
        vm.mmio(0, &[0x89, 0x03], 0xfec0_0000);
        vm.state(0).gpr[0] = value;
        vm.mmio(0, &[0x89, 0x03], 0xfec0_0010);
    }
    vm.state(0).gpr[0] = 1;
    let next = vm.state(0).rip + 1;
    let resume = vm.exit(0, code::IOIO, 0x200e << 16 | 1 << 4, next);
    assert_eq!(resume.inject, common::interrupt(0x45));
}

#[test]
fn the_apic_can_be_moved_and_is_hidden_while_it_is_off() {
    let mut vm = machine(1);
    let feature = |vm: &mut Machine, leaf: u32| {
        let table = vm.fake().cpuid.last().unwrap();
        table.iter().find(|entry| entry.leaf == leaf).unwrap().answer[3] >> 9 & 1
    };
    vm.wrmsr(0, 0x1b, 0xfed4_0900);
    assert_eq!(vm.rdmsr(0, 0x1b), Ok(0xfed4_0900));
    vm.mmio(0, &[0x8b, 0x03], 0xfed4_0030);
    assert_eq!(vm.state(0).gpr[0], 0x0005_0014);
    assert_eq!(vm.wrmsr(0, 0x1b, 0xfee0_0901).inject, common::PROTECTION, "a reserved bit");
    assert_eq!(vm.wrmsr(0, 0x1b, 1 << 60 | 0xfee0_0900).inject, common::PROTECTION, "wider than addresses are");
    vm.wrmsr(0, 0x1b, 0xfee0_0100);
    assert_eq!((feature(&mut vm, 1), feature(&mut vm, 0x8000_0001)), (0, 0));
    vm.wrmsr(0, 0x1b, 0xfee0_0900);
    assert_eq!((feature(&mut vm, 1), feature(&mut vm, 0x8000_0001)), (1, 1));
}

#[test]
fn string_instructions_work_on_device_memory() {
    const DEVICE: u64 = 0xff00_0000;
    const MEMORY: u64 = 0x30_1000;
    let mut vm = machine(1);
    vm.fake().memory[MEMORY as usize..][..4].copy_from_slice(b"abcd");
    let mut step = |bytes: &[u8], rsi: u64, rdi: u64, rcx: u64, rax: u64| {
        let state = vm.state(0);
        (state.gpr[6], state.gpr[7], state.gpr[1], state.gpr[0]) = (rsi, rdi, rcx, rax);
        let mut exits = 0;
        vm.code(0, bytes);
        while vm.state(0).rip == common::CODE {
            vm.exit(0, code::NPF, 4, DEVICE);
            exits += 1;
        }
        let state = vm.state(0);
        assert_eq!(state.rip, common::CODE + bytes.len() as u64);
        (exits, state.gpr[6], state.gpr[7], state.gpr[1], state.gpr[0], state.rflags >> 6 & 1)
    };
    let (rep_movsb, rep_cmpsb, repne_scasb) = ([0xf3, 0xa4], [0xf3, 0xa6], [0xf2, 0xae]);
    assert_eq!(step(&rep_movsb, MEMORY, DEVICE, 4, 7), (4, MEMORY + 4, DEVICE + 4, 0, 7, 0));
    assert_eq!(step(&[0xad], DEVICE, 0, 0, u64::MAX), (1, DEVICE + 4, 0, 0, 0x6463_6261, 0));
    assert_eq!(step(&rep_cmpsb, MEMORY, DEVICE, 4, 0), (4, MEMORY + 4, DEVICE + 4, 0, 0, 1));
    assert_eq!(step(&rep_cmpsb, MEMORY + 1, DEVICE, 4, 0), (1, MEMORY + 2, DEVICE + 1, 3, 0, 0), "they differ");
    assert_eq!(step(&repne_scasb, 0, DEVICE, 4, b'c'.into()), (3, 0, DEVICE + 3, 1, b'c'.into(), 1));
    assert_eq!(step(&[0xa5], DEVICE, MEMORY + 8, 0, 0), (1, DEVICE + 4, MEMORY + 12, 0, 0, 1));
    assert_eq!(vm.fake().memory[MEMORY as usize + 8..][..4], *b"abcd");
}
