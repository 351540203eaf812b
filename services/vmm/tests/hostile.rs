//! A guest that does anything: whatever leaves it, the vmm answers or ends the VM, and never panics or overflows.

mod common;

use caisson_proto::exits::code;
use caisson_proto::vcpu::ExitFlags;
use common::{CODE, Machine};
use proptest::prelude::*;

/// What the guest does next.
#[derive(Debug, Clone)]
enum Act {
    Port { port: u16, size: u8, input: bool, value: u32 },
    Read(u32),
    Write(u32, u64),
    Mmio { gpa: u64, code: [u8; 15], gpr: u64 },
    Leave { exit: u16, code: [u8; 15], gpr: u64, flags: u16 },
    Control { cr0: u64, cr3: u64, cr4: u64, efer: u64 },
    Wait(u64),
    Keys(Vec<u8>),
}

/// Numbers near the places where arithmetic goes wrong, or any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..4, any::<u64>(), (0_u32..64, 0_u64..3).prop_map(|(bit, less)| (1 << bit) - less.min(1 << bit))]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(vec![
            0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0x4d0, 0x4d1
        ]),
        0x3f8_u16..0x400,
        0x600_u16..0x610,
        any::<u16>(),
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        0x800_u32..0x840,
        prop::sample::select(vec![0x1b, 0x10, 0x3b, 0x6e0, 0x277, 0x2ff, 0xc000_0080, 0xc000_0103]),
        0x4b56_4d00_u32..0x4b56_4d08,
        0xc000_0000_u32..0xc000_0200,
        any::<u32>(),
    ]
}

/// Instructions that the decoder's users know, behind any prefix, or any bytes.
fn instruction() -> impl Strategy<Value = [u8; 15]> {
    let known: Vec<&[u8]> = vec![
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xc7],
        &[0x87],
        &[0xa4],
        &[0xa5],
        &[0xaa],
        &[0xab],
        &[0xac],
        &[0xad],
        &[0x01],
        &[0x11],
        &[0x21],
        &[0x31],
        &[0x81],
        &[0x83],
        &[0xf6],
        &[0xf7],
        &[0x0f, 0xb6],
        &[0x0f, 0xbe],
        &[0x0f, 0x22],
        &[0x0f, 0x20],
        &[0x0f, 0x23],
        &[0x0f, 0x01],
        &[0x6c],
        &[0x6d],
        &[0x6e],
        &[0x6f],
        &[],
    ];
    let prefixes =
        prop::sample::select(vec![0x66_u8, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x41, 0x4f]);
    (prop::collection::vec(prefixes, 0..4), prop::sample::select(known), any::<[u8; 15]>()).prop_map(
        |(prefixes, known, rest)| {
            let bytes = prefixes.into_iter().chain(known.iter().copied()).chain(rest);
            let mut code = [0; 15];
            code.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            code
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let gpa = prop_oneof![
        0xfee0_0000_u64..0xfee0_1000,
        0xfec0_0000_u64..0xfec0_0040,
        (0_u64..1 << 40),
        (0_u64..8).prop_map(|below| (32 << 20) - below),
    ];
    let exit = prop::sample::select(vec![
        code::WRITE_CR0,
        code::READ_DR0,
        code::RDPMC,
        code::INVD,
        code::HLT,
        code::VMRUN,
        code::VMMCALL,
        code::WBINVD,
        code::MONITOR,
        code::MWAIT,
    ]);
    prop_oneof![
        (port(), 0_u8..3, any::<bool>(), any::<u32>()).prop_map(|(port, size, input, value)| Act::Port {
            port,
            size,
            input,
            value
        }),
        msr().prop_map(Act::Read),
        (msr(), number()).prop_map(|(msr, value)| Act::Write(msr, value)),
        (gpa, instruction(), number()).prop_map(|(gpa, code, gpr)| Act::Mmio { gpa, code, gpr }),
        (exit, instruction(), number(), any::<u16>()).prop_map(|(exit, code, gpr, flags)| Act::Leave {
            exit,
            code,
            gpr,
            flags
        }),
        (number(), number(), number(), number()).prop_map(|(cr0, cr3, cr4, efer)| Act::Control { cr0, cr3, cr4, efer }),
        (0_u64..1 << 40).prop_map(Act::Wait),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Act::Keys),
    ]
}

fn perform(machine: &mut Machine, vcpu: u8, act: Act) {
    let index = usize::from(vcpu);
    match act {
        Act::Port { port, size, input, value } => {
            machine.code(index, &[0xee]);
            machine.state(index).gpr[0] = value.into();
            let info = u64::from(port) << 16 | 1 << (4 + size) | u64::from(input);
            machine.exit(vcpu, code::IOIO, info, CODE + 1);
        }
        Act::Read(msr) => _ = machine.rdmsr(vcpu, msr),
        Act::Write(msr, value) => _ = machine.wrmsr(vcpu, msr, value),
        Act::Mmio { gpa, code, gpr } => {
            machine.state(index).gpr = [gpr; 16];
            machine.mmio(vcpu, &code, gpa);
        }
        Act::Leave { exit, code, gpr, flags } => {
            machine.code(index, &code);
            machine.state(index).gpr = [gpr; 16];
            machine.exit_with(vcpu, exit, gpr, 0, ExitFlags::from_bits_truncate(flags.into()));
        }
        Act::Control { cr0, cr3, cr4, efer } => {
            let state = machine.state(index);
            (state.cr0, state.cr3, state.cr4, state.efer) = (cr0, cr3, cr4, efer);
        }
        Act::Wait(ticks) => {
            let time = &machine.fake().time;
            time.set(time.get() + ticks);
        }
        Act::Keys(bytes) => _ = machine.vmm.console_input(&bytes),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn the_vmm_outlives_any_guest(acts in prop::collection::vec((0_u8..2, act()), 1..60)) {
        let mut machine = Machine::new(2);
        for (vcpu, act) in acts {
            perform(&mut machine, vcpu, act);
            if machine.vmm.is_over() {
                break;
            }
        }
    }
}
