//! What a guest may do next.

use arbitrary::{Arbitrary, Result, Unstructured};

/// One thing.
#[derive(Clone, Debug, Arbitrary)]
pub enum Act {
    /// IN or OUT.
    Port(Port),
    /// A string instruction, on a port or on a device.
    Strings(Strings),
    /// RDMSR or WRMSR.
    Msr(Msr),
    /// An instruction on a device.
    Device {
        /// The address.
        #[arbitrary(with = address)]
        gpa: u64,
        /// The instruction.
        #[arbitrary(with = instruction)]
        code: [u8; 15],
        /// What all registers hold.
        #[arbitrary(with = number)]
        gpr: u64,
    },
    /// Any other exit.
    Exit {
        /// Its code.
        #[arbitrary(with = exit)]
        code: u16,
        /// What is at rip.
        #[arbitrary(with = instruction)]
        bytes: [u8; 15],
        /// What all registers hold, and what the exit tells.
        #[arbitrary(with = number)]
        value: u64,
        /// The flags.
        flags: u16,
    },
    /// An interrupt command.
    Command {
        /// Its low half: vector, mode, destination's kind.
        low: u32,
        /// The destination.
        #[arbitrary(with = |u: &mut Unstructured| u.choose(&[0, 1, 2, 3, 0xff, u32::MAX]).copied())]
        destination: u32,
    },
    /// Control registers as no guest should have them.
    Control {
        /// CR0.
        #[arbitrary(with = number)]
        cr0: u64,
        /// CR3.
        #[arbitrary(with = number)]
        cr3: u64,
        /// CR4.
        #[arbitrary(with = number)]
        cr4: u64,
        /// EFER.
        #[arbitrary(with = number)]
        efer: u64,
    },
    /// Segments as no guest should have them.
    Segment {
        /// Which one.
        #[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=5))]
        index: u8,
        /// Attributes.
        attributes: u16,
        /// Base.
        #[arbitrary(with = number)]
        base: u64,
        /// Privilege.
        #[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=3))]
        cpl: u8,
    },
    /// A word of memory changes: page tables for instance.
    Poke {
        /// Where.
        #[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=(32 << 17) - 1))]
        word: u32,
        /// What.
        #[arbitrary(with = number)]
        value: u64,
    },
    /// A state in which things work again.
    Calm,
    /// Time passes.
    Wait(#[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=1 << 40))] u64),
    /// Somebody types.
    Keys(Vec<u8>),
    /// The console takes so many bytes more, and its bell rings.
    Room(u8),
    /// memory refuses, or doesn't any more.
    Refuse(bool),
}

/// IN or OUT.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Port {
    /// The port.
    #[arbitrary(with = port)]
    pub port: u16,
    /// Its width: 1 << `size` bytes.
    #[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=2))]
    pub size: u8,
    /// IN.
    pub input: bool,
    /// What is written.
    pub value: u32,
    /// Ticks before it.
    pub after: u32,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Strings {
    /// Opcode: INS and OUTS leave the guest as port accesses, others as faults at their device.
    #[arbitrary(with = |u: &mut Unstructured| u.choose(&[0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]).copied())]
    pub opcode: u8,
    /// Prefixes: operand size, address size, REP, REPNE, REX.W, a segment.
    pub prefixes: u8,
    /// The port.
    #[arbitrary(with = port)]
    pub port: u16,
    /// rcx.
    #[arbitrary(with = number)]
    pub count: u64,
    /// rsi.
    #[arbitrary(with = address)]
    pub source: u64,
    /// rdi.
    #[arbitrary(with = address)]
    pub target: u64,
    /// rax.
    #[arbitrary(with = number)]
    pub rax: u64,
    /// RFLAGS.DF.
    pub down: bool,
}

/// RDMSR or WRMSR.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Msr {
    /// The register.
    #[arbitrary(with = msr)]
    pub msr: u32,
    /// The value written, if it is written.
    #[arbitrary(with = |u: &mut Unstructured| if u.arbitrary()? { number(u).map(Some) } else { Ok(None) })]
    pub write: Option<u64>,
    /// Ticks before it.
    pub after: u32,
}

/// Numbers near the places where arithmetic goes wrong, or any.
pub fn number(u: &mut Unstructured) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.int_in_range(0..=4)?,
        1 => u.arbitrary()?,
        2 => (1_u64 << u.int_in_range(0..=63)?).wrapping_sub(u.int_in_range(0..=2)?),
        _ => u.arbitrary::<u16>()?.into(),
    })
}

fn port(u: &mut Unstructured) -> Result<u16> {
    const KNOWN: [u16; 30] = [
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x4d0, 0x4d1, 0xe0, 0xe2, 0xe4,
        0xe8, 0xf4, 0x505, 0x510, 0x511, 0x604, 0x605, 0x608, 0xcf8, 0xcf9, 0x80, 0xed,
    ];
    Ok(match u.int_in_range(0..=7)? {
        0..=3 => *u.choose(&KNOWN)?,
        4..=5 => u.int_in_range(0x3f8..=0x3ff)?,
        6 => u.int_in_range(0x2000..=0x2018)?,
        _ => u.arbitrary()?,
    })
}

fn msr(u: &mut Unstructured) -> Result<u32> {
    const KNOWN: [u32; 16] = [
        0x1b,
        0x10,
        0x3b,
        0x6e0,
        0x174,
        0x1a0,
        0x277,
        0x2ff,
        0xfe,
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0100,
        0xc000_0102,
        0xc000_0103,
        0xc001_1029,
    ];
    Ok(match u.int_in_range(0..=5)? {
        0..=1 => u.int_in_range(0x800..=0x83f)?,
        2..=3 => *u.choose(&KNOWN)?,
        4 => u.int_in_range(0x4b56_4d00..=0x4b56_4d08)?,
        _ => u.arbitrary()?,
    })
}

/// Devices, the end of memory, and anything.
fn address(u: &mut Unstructured) -> Result<u64> {
    Ok(match u.int_in_range(0..=8)? {
        8 => 0xd000_0000 + (u.int_in_range(0..=3)? << 12) + u.int_in_range(0..=0x110)?,
        0..=2 => u.int_in_range(0xfee0_0000..=0xfee0_0fff)?,
        3 => u.int_in_range(0xfec0_0000..=0xfec0_0043)?,
        4 => 0xff00_0000 + (u.int_in_range(0..=0xffff)? & !7) + u.int_in_range(0..=7)?,
        5 => (32 << 20) - u.int_in_range(0..=8)?,
        6 => u.int_in_range(0..=(32 << 20) - 1)?,
        _ => number(u)?,
    })
}

fn exit(u: &mut Unstructured) -> Result<u16> {
    const KNOWN: [u16; 20] = [
        0x72, 0x74, 0x75, 0x76, 0x77, 0x78, 0x7a, 0x7d, 0x6e, 0x6f, 0x80, 0x81, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8d,
        0x64, 0xf002,
    ];
    Ok(match u.int_in_range(0..=5)? {
        0 => u.int_in_range(0..=0x3f)?,
        1 => u.int_in_range(0x40..=0x5f)?,
        2..=3 => *u.choose(&KNOWN)?,
        4 => *u.choose(&[0xf000, 0xf001, 0x7f, 0x65, 0x60, 0x61])?,
        _ => u.arbitrary()?,
    })
}

/// Instructions that the decoder's users know, behind any prefix, or any bytes.
pub fn instruction(u: &mut Unstructured) -> Result<[u8; 15]> {
    const PREFIXES: [u8; 12] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x41, 0x4f];
    const KNOWN: [&[u8]; 64] = [
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xc6],
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
        &[0x19],
        &[0x21],
        &[0x29],
        &[0x31],
        &[0x39],
        &[0x80],
        &[0x81],
        &[0x83],
        &[0xf6],
        &[0xf7],
        &[0xfe],
        &[0xff],
        &[0xd3],
        &[0xc1],
        &[0x0f, 0xa4],
        &[0x0f, 0xad],
        &[0x0f, 0xa3],
        &[0x0f, 0xb1],
        &[0x0f, 0xc1],
        &[0x0f, 0xb6],
        &[0x0f, 0xbe],
        &[0x0f, 0x22],
        &[0x0f, 0x20],
        &[0x0f, 0x23],
        &[0x0f, 0x01],
        &[0x0f, 0x38, 0xf1],
        &[0x0f, 0xc7],
        &[0x0f, 0x7f],
        &[0xf4],
        &[0x8f],
        &[],
        &[0xd0],
        &[0xd1],
        &[0xd2],
        &[0xc0],
        &[0x69],
        &[0x6b],
        &[0x0f, 0xba],
        &[0x0f, 0xab],
        &[0x0f, 0xbc],
        &[0x0f, 0xbd],
        &[0x0f, 0xb8],
        &[0x0f, 0xa5],
        &[0x0f, 0xac],
        &[0x0f, 0xaf],
        &[0x0f, 0xc3],
        &[0x0f, 0x38, 0xf0],
        &[0x0f, 0x4c],
        &[0x0f, 0x9f],
    ];
    let mut code: [u8; 15] = u.arbitrary()?;
    let mut start = 0;
    for _ in 0..u.int_in_range(0..=3)? {
        code[start] = *u.choose(&PREFIXES)?;
        start += 1;
    }
    let known = *u.choose(&KNOWN)?;
    code[start..start + known.len()].copy_from_slice(known);
    Ok(code)
}
