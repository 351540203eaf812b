//! Instructions, registers and faults, as a guest meets them.

mod common;

use caisson_proto::exits::code;
use caisson_proto::supervisor::{CrashKind, ExitKind};
use caisson_proto::vcpu::{Action, ExitFlags, Groups};
use caisson_vmm::Event;
use caisson_vmm::{cpuid, waiting};
use common::{CODE, Machine, PROTECTION};
use proptest::prelude::*;

#[test]
fn unknown_registers_are_protection_faults() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.rdmsr(0, 0x1234), Err(PROTECTION));
    assert_eq!(machine.wrmsr(0, 0x1234, 5).inject, PROTECTION);
    assert_eq!(machine.state(0).rip, CODE, "at the instruction");
    let fake = machine.fake();
    assert_eq!(fake.events[1..], [Event::UnknownMsrRead(0x1234), Event::UnknownMsrWrite(0x1234, 5)]);
}

#[test]
fn efer_is_checked() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.wrmsr(0, 0xc000_0080, 0xd01).groups, Groups::CONTROL);
    assert_eq!(machine.state(0).efer, 0xd01);
    assert_eq!(machine.rdmsr(0, 0xc000_0080), Ok(0xd01));
    assert_eq!(machine.wrmsr(0, 0xc000_0080, 0x1d01).inject, PROTECTION, "SVME");
    assert_eq!(machine.wrmsr(0, 0xc000_0080, 0xc01).inject, PROTECTION, "LME while paging");
    machine.state(0).cr0 = 0x11;
    machine.state(0).efer = 0;
    machine.wrmsr(0, 0xc000_0080, 0x500);
    assert_eq!(machine.state(0).efer, 0x100, "LMA is the processor's");
}

/// MOV to CR0: (EFER, CR4, 64-bit code, CR0, value, whether it is taken and then LMA).
#[test]
fn paging_is_switched_as_the_cpu_does_it() {
    const PAGING: u64 = 0x8000_0011;
    const CASES: [(u64, u64, bool, u64, u64, Option<bool>); 13] = [
        (0x100, 0x20, false, 0x11, PAGING, Some(true)),
        (0x500, 0x20, false, PAGING, 0x11, Some(false)),
        (0x500, 0x20, false, PAGING, PAGING | 1 << 16, Some(true)),
        (0, 0, false, 0x11, PAGING, Some(false)),
        (0, 0, false, 0x11, 0x10, Some(false)),
        (0, 0, false, 0x11, 0x6000_0011, Some(false)),
        (0, 0, false, 0x11, 0x8000_0010, None),
        (0, 0, false, 0x11, 0x2000_0011, None),
        (0x500, 0x20, true, PAGING, 1 << 32 | PAGING, None),
        (0x100, 0, false, 0x11, PAGING, None),
        (0x100, 0x20, true, 0x11, PAGING, None),
        (0x500, 0x20, true, PAGING, 0x11, None),
        (0x500, 0x2_0020, false, PAGING, 0x11, None),
    ];
    for (efer, cr4, is_64_bit, cr0, value, taken) in CASES {
        let mut machine = Machine::new(1);
        // mov cr0, rax
        machine.code(0, &[0x0f, 0x22, 0xc0]);
        let state = machine.state(0);
        (state.efer, state.cr4, state.cr0, state.gpr[0]) = (efer, cr4, cr0, value);
        state.segments[1].attributes = if is_64_bit { 0xa9b } else { 0xc9b };
        let reply = machine.exit(0, code::CR0_SEL_WRITE, 0, 0);
        let state = machine.state(0);
        match taken {
            Some(active) => {
                assert!(reply.inject == 0 && reply.groups.contains(Groups::CONTROL), "{cr0:x} {value:x}");
                assert_eq!((state.cr0, state.efer & 1 << 10 != 0), (value | 0x10, active), "{cr0:x} {value:x}");
            }
            None => assert_eq!((reply.inject, state.cr0), (PROTECTION, cr0), "{efer:x} {cr4:x} {cr0:x} {value:x}"),
        }
    }
}

#[test]
fn addresses_in_registers_are_canonical() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.wrmsr(0, 0xc000_0102, 1 << 63).inject, PROTECTION);
    assert_eq!(machine.wrmsr(0, 0x277, 2).inject, PROTECTION, "no such memory type");
    assert_eq!(machine.wrmsr(0, 0x277, 0x0107).groups, Groups::PAT);
    assert_eq!(machine.state(0).pat, 0x0107);
}

#[test]
fn the_tsc_can_be_set_and_kvmclock_follows() {
    let mut machine = Machine::new(1);
    machine.wrmsr(0, 0x4b56_4d01, 0x10_0001);
    let record = |machine: &mut Machine| {
        let bytes = machine.fake().memory[0x10_0000..0x10_0020].to_vec();
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        (long(0), long(8), long(16), bytes[28] as i8, bytes[29])
    };
    assert_eq!(record(&mut machine), (2, 0, 0, 1, 1), "TSC 0 was time 0, and it is stable");
    let now = machine.rdmsr(0, 0x10).unwrap();
    assert_eq!(machine.wrmsr(0, 0x10, now + 1_000_000).groups, Groups::TSC);
    let (version, tsc, ..) = record(&mut machine);
    assert!(version == 4 && tsc.abs_diff(1_000_000) < 100, "{tsc}");
    machine.wrmsr(0, 0x4b56_4d00, 0x10_0100);
    assert_eq!(machine.fake().memory[0x10_0104..0x10_0108], 1_767_225_600_u32.to_le_bytes());
    machine.wrmsr(0, 0x4b56_4d00, u64::MAX << 12);
    machine.wrmsr(0, 0x4b56_4d01, u64::MAX);
    assert!(matches!(machine.fake().events[..], [_, Event::NoDevice(_), Event::NoDevice(_)]), "no memory there");
}

#[test]
fn prefixed_and_moved_instructions_have_their_own_length() {
    let mut machine = Machine::new(1);
    machine.code(0, &[0x48, 0x0f, 0xa2]);
    assert_eq!(machine.exit(0, code::CPUID, 0, 0).rip, CODE + 3);
    machine.code(0, &[0x66, 0x66, 0x0f, 0x09]);
    assert_eq!(machine.exit(0, code::WBINVD, 0, 0).rip, CODE + 4);
    machine.code(0, &[0xf3, 0x0f, 0x09]);
    assert_eq!(machine.exit(0, code::WBINVD, 0, 0).rip, CODE + 3, "WBNOINVD");
    machine.fake().filled.clear();
    machine.code(0, &[0x0f, 0x09]);
    assert_eq!(machine.exit(0, code::WBINVD, 0, 0).rip, CODE + 2);
    assert_eq!(machine.fake().filled, [], "the usual form of known code needs no registers");
    // Across a page boundary.
    let edge = CODE as usize + 0xfff;
    machine.fake().memory[edge..edge + 3].copy_from_slice(&[0x0f, 0x01, 0xd9]);
    machine.state(0).rip = edge as u64;
    assert_eq!(machine.exit(0, code::VMMCALL, 0, 0).rip, edge as u64 + 3);
}

#[test]
fn memory_comes_when_it_is_touched() {
    let mut machine = Machine::new(1);
    let resume = machine.exit(0, code::NPF, 4, 0xa0_1234);
    assert_eq!((resume.rip, resume.inject, resume.clear_shadow), (0x20_0200, 0, false));
    assert!(machine.fake().backed[5 * 512..6 * 512].iter().all(|backed| *backed));
}

#[test]
fn who_asks_for_memory_in_vain_waits_and_then_ends() {
    let mut machine = Machine::new(1);
    let wait = |machine: &mut Machine, ms: u64| *machine.fake().time.get_mut() += ms * common::KHZ;
    let mut page = 0xc0_0000;
    let fault = |machine: &mut Machine, page| machine.exit(0, code::NPF, 4, page);
    for round in 0..2 {
        machine.fake().refuse_memory = true;
        for _ in 0..waiting::PATIENCE_MS / waiting::AGAIN_MS {
            let resume = fault(&mut machine, page);
            let soon = machine.fake().time.get() + waiting::AGAIN_MS * common::KHZ;
            assert!(resume.action == Action::Park && resume.deadline.abs_diff(soon) < 10, "{resume:?}");
            assert_eq!(resume.rip, 0x20_0200, "it faults again");
            wait(&mut machine, waiting::AGAIN_MS - 1);
        }
        machine.fake().refuse_memory = round > 0;
        if round == 0 {
            // Somebody gave some.
            assert_eq!(fault(&mut machine, page).action, Action::Run);
            (page, machine.fake().refuse_memory) = (0xe0_0000, true);
            wait(&mut machine, 2000);
        }
    }
    assert!(!machine.vmm.is_over());
    wait(&mut machine, 900);
    fault(&mut machine, page);
    let (kind, words) = machine.fake().ended.unwrap();
    assert_eq!((kind, words[0]), (ExitKind::Crashed, CrashKind::NoMemory as u64));
}

#[test]
fn a_fault_that_does_not_go_away_ends_the_vm() {
    let mut machine = Machine::new(1);
    for _ in 0..100 {
        machine.exit(0, code::NPF, 4, 0xa0_0000);
    }
    assert!(machine.vmm.is_over());
}

#[test]
fn moves_to_and_from_devices() {
    let mut machine = Machine::new(1);
    machine.mmio(0, &[0xc7, 0x00, 1, 0, 0, 0], 0xfec0_0000);
    machine.mmio(0, &[0x8b, 0x58, 0x10], 0xfec0_0010);
    let state = machine.state(0);
    assert_eq!((state.gpr[3], state.rip), (0x0017_0020, CODE + 3), "I/O APIC version");
    machine.mmio(0, &[0x44, 0x8b, 0x00], 0xfee0_0030);
    assert_eq!(machine.state(0).gpr[8], 0x0005_0014, "local APIC version");
    machine.mmio(0, &[0x0f, 0xb6, 0x10], 0xfee0_0030);
    assert_eq!(machine.state(0).gpr[2], 0x14);
    machine.state(0).gpr[1] = 0x1ff;
    machine.mmio(0, &[0x87, 0x08], 0xfee0_00f0);
    assert_eq!(machine.state(0).gpr[1], 0x1ff, "SVR as firmware left it");
    machine.mmio(0, &[0x83, 0x08, 0x20], 0xfee0_0080);
    machine.mmio(0, &[0x83, 0x38, 0x20], 0xfee0_0080);
    assert_ne!(machine.state(0).rflags & 1 << 6, 0, "task priority 0x20 compares equal");
    machine.mmio(0, &[0x8b, 0x00], 0xd000_0000);
    assert_eq!(machine.state(0).gpr[0], 0xffff_ffff, "nothing there");
}

#[test]
fn odd_instructions_on_devices_end_the_vm() {
    let mut machine = Machine::new(1);
    let resume = machine.mmio(0, &[0x0f, 0x6f, 0x00], 0xfee0_0030);
    assert_eq!(resume.action, Action::Stop);
    let is_npf = |event: &Event| matches!(event, Event::Unemulated { code: code::NPF, .. });
    assert!(machine.fake().events.iter().any(is_npf));
}

#[test]
fn strings_go_through_ports() {
    let mut machine = Machine::new(1);
    machine.fake().memory[0x10_0ffe..0x10_1002].copy_from_slice(b"hey\n");
    machine.code(0, &[0xf3, 0x6e]);
    let state = machine.state(0);
    (state.gpr[6], state.gpr[1], state.gpr[2]) = (0x10_0ffe, 4, 0x3f8);
    machine.exit(0, code::IOIO, 0x3f8 << 16 | 1 << 4 | 0xc, CODE + 2);
    assert_eq!(machine.fake().console, b"hey\n");
    let state = machine.state(0);
    assert_eq!((state.gpr[6], state.gpr[1], state.rip), (0x10_1002, 0, CODE + 2));

    machine.code(0, &[0x6d]);
    let state = machine.state(0);
    (state.gpr[7], state.gpr[2], state.rflags) = (0x10_2000, 0xcf8, 0x402);
    machine.exit(0, code::IOIO, 0xcf8 << 16 | 1 << 6 | 5, CODE + 1);
    assert_eq!(machine.state(0).gpr[7], 0x10_1ffc, "downward");
    assert_eq!(machine.fake().memory[0x10_2000..0x10_2004], [0xff; 4]);

    machine.code(0, &[0x6e]);
    machine.state(0).gpr[6] = 1 << 40;
    let resume = machine.exit(0, code::IOIO, 0x3f8 << 16 | 1 << 4 | 4, CODE + 1);
    assert_eq!((resume.inject, machine.state(0).cr2), (1 << 31 | 1 << 11 | 3 << 8 | 14, 1 << 40));
    assert_eq!(machine.state(0).rip, CODE);
}

#[test]
fn task_priority_by_cr8() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine.code(0, &[0x44, 0x0f, 0x22, 0xc0]);
    machine.state(0).gpr[0] = 5;
    machine.exit(0, code::WRITE_CR0 + 8, 0, 0);
    assert_eq!(machine.state(0).rip, CODE + 4);
    assert_eq!(machine.rdmsr(0, 0x808), Ok(0x50));
    machine.code(0, &[0x44, 0x0f, 0x20, 0xc3]);
    machine.exit(0, code::READ_CR0 + 8, 0, 0);
    assert_eq!(machine.state(0).gpr[3], 5);
    machine.code(0, &[0x44, 0x0f, 0x22, 0xc0]);
    machine.state(0).gpr[0] = 16;
    assert_eq!(machine.exit(0, code::WRITE_CR0 + 8, 0, 0).inject, PROTECTION);
}

#[test]
fn refused_state_is_a_fault_or_a_crash() {
    let mut machine = Machine::new(1);
    machine.code(0, &[0x0f, 0x22, 0xe0]);
    assert_eq!(machine.exit(0, code::INVALID, 0, 0).inject, PROTECTION, "MOV to CR4");
    machine.code(0, &[0x90]);
    machine.exit(0, code::INVALID, 0, 0);
    assert_eq!(machine.fake().ended.unwrap().1[0], CrashKind::InvalidState as u64);

    let mut machine = Machine::new(1);
    machine.exit(0, code::SHUTDOWN, 0, 0);
    assert_eq!(machine.fake().ended.unwrap().1[..3], [CrashKind::TripleFault as u64, 0, 0x20_0200]);
}

#[test]
fn what_cpuid_hides_is_undefined() {
    let mut machine = Machine::new(1);
    for hidden in [code::VMRUN, code::VMLOAD, code::SKINIT, code::MONITOR, code::MWAIT, code::INVLPGA] {
        assert_eq!(machine.exit(0, hidden, 0, 0).inject, 1 << 31 | 3 << 8 | 6, "{hidden:#x}");
    }
}

#[test]
fn cpuid_shows_a_kvm_guest() {
    let mut machine = Machine::new(3);
    let tables = machine.fake().cpuid.clone();
    assert_eq!(tables.len(), 3);
    let get = |leaf, subleaf| cpuid::answer(&tables[0], 2, leaf, subleaf);
    assert_eq!(get(0x4000_0000, 0)[1..], [0x4b4d_564b, 0x564b_4d56, 0x4d]);
    let [_, ebx, ecx, edx] = get(1, 0);
    assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (2, 3), "APIC id, processors");
    assert_eq!(ecx >> 31 & ecx >> 24 & ecx >> 21 & 1, 1, "hypervisor, TSC-deadline, x2APIC");
    assert_eq!(ecx & (1 << 3 | 1 << 5 | 1 << 17 | 1 << 27), 0, "no MONITOR, VMX, PCID, OSXSAVE");
    assert_eq!((edx >> 28 & 1, edx >> 7 & 1), (1, 0), "threads, no machine check");
    assert_eq!(edx & (1 << 18 | 1 << 19), 1 << 19, "CLFLUSH, no serial number");
    assert_eq!(get(7, 0)[2] & (1 << 4 | 1 << 16 | 1 << 31), 0, "no 5-level paging, no keys for supervisors");
    assert_eq!(get(0x8000_0001, 0)[2] & (1 << 2 | 1 << 22), 0, "no SVM, no topology extensions");
    assert_eq!(get(0x8000_0007, 0), [0, 0, 0, 1 << 8]);
    assert_eq!((get(0xb, 1), get(0xb, 0)[3]), ([2, 3, 0x201, 2], 2));
    assert_eq!(get(0xd, 0), [0x207, 2696, 2696, 0]);
    assert_eq!((get(0x8000_000a, 0), get(0x8000_001f, 0), get(0x1f, 0)), ([0; 4], [0; 4], [0; 4]));
    assert_eq!(cpuid::answer(&tables[2], 2, 1, 0)[1] >> 24, 2);
    let own = tables[1].iter().find(|entry| entry.leaf == 1).unwrap();
    assert_eq!(own.answer[1] >> 24, 1);
}

#[test]
fn protection_keys_show_whether_cr4_has_them_on() {
    let mut machine = Machine::new(1);
    for (cr4, shown) in [(0x20, 1 << 3), (0x20 | 1 << 22, 1 << 3 | 1 << 4)] {
        let state = machine.state(0);
        (state.cr4, state.gpr[0], state.gpr[1]) = (cr4, 7, 0);
        machine.exit(0, code::CPUID, 0, 0);
        assert_eq!(machine.state(0).gpr[1] & (1 << 3 | 1 << 4), shown, "{cr4:#x}");
    }
    // Where the machine can't keep PKRU, there are none.
    let host = |leaf, subleaf| match (leaf, subleaf) {
        (0xd, 0) => [7, 0, 0, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0 | 0x8000_0000, _) => [leaf | 0xd, 0, 0, 0],
        _ => [u32::MAX; 4],
    };
    let table = cpuid::table(host, 1, common::FACTS);
    assert_eq!(cpuid::answer(&table, 0, 7, 0)[2] & (1 << 3 | 1 << 4), 0);
    assert_eq!((cpuid::answer(&table, 0, 0xd, 0), cpuid::cr4_keys(&table)), ([7, 832, 832, 0], 0));
}

#[test]
fn without_xsave_nothing_that_needs_it_shows() {
    let facts = caisson_vmm::Facts { xsave: false, ..common::FACTS };
    let table = cpuid::table(|leaf, _| if leaf & 0xff == 0 { [leaf | 0xd, 0, 0, 0] } else { [u32::MAX; 4] }, 1, facts);
    let get = |leaf| cpuid::answer(&table, 0, leaf, 0);
    assert_eq!(get(1)[2] & (1 << 12 | 1 << 26 | 1 << 28), 0);
    assert_eq!((get(7)[1] & 1 << 5, get(0xd), get(0)[0]), (0, [0; 4], 0xb));
}

#[test]
fn logs_end_before_the_guest_does() {
    let mut machine = Machine::new(1);
    for msr in 0..1000 {
        machine.rdmsr(0, 0x5000 + msr).unwrap_err();
    }
    assert!(machine.fake().events.len() < 100);
}

proptest! {
    #[test]
    fn no_exit_panics(
        exits in proptest::collection::vec(
            (0_u8..4, prop_oneof![0_u16..0x90, Just(code::NPF), 0xf000_u16..0xf003], any::<[u64; 2]>(), any::<u32>()),
            1..40,
        ),
        bytes in proptest::collection::vec(any::<u8>(), 16),
        registers in any::<[u64; 16]>(),
        narrow in any::<bool>(),
    ) {
        let mut machine = Machine::new(2);
        for (vcpu, code, [info1, info2], flags) in exits {
            let at = usize::from(vcpu % 2);
            machine.code(at, &bytes);
            let state = machine.state(at);
            state.gpr = registers;
            if narrow {
                // Likelier to be something.
                state.gpr[1] = 0x800 + registers[1] % 0x40;
            }
            let info2 = if narrow { 0xfec0_0000 | info2 & 0x20_0fff } else { info2 & ((1 << 52) - 1) };
            machine.exit_with(vcpu % 2, code, info1, info2, ExitFlags::from_bits_truncate(flags));
        }
    }
}

/// What the vmm doesn't ask for is there: the kernel's table says so.
#[test]
fn the_kernel_fills_what_is_taken_for_filled() {
    use caisson_vmm::platform::filled;
    for code in 0..=u16::MAX {
        for info1 in [0, 1, 4, 5] {
            let theirs = caisson_core::svm::exits::groups(code, info1, 0);
            assert!(theirs.contains(filled(code, info1)), "{code:#x}");
        }
    }
}
