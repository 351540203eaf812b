//! Fetching and decoding: any state, any tables, any bytes.

use arbitrary::{Arbitrary, Result, Unstructured};
use caisson_proto::vcpu::{Groups, Save, Segment, VcpuState};
use caisson_vmm::insn::decode::{CodePages, MAX_BYTES, code_bits};
use caisson_vmm::insn::walk::{Access, Paging};
use caisson_vmm::ram::Ram;

use super::act::{instruction, number};
use super::fake::Fake;
use super::machine::MIB;
use caisson_vmm::Platform;

#[derive(Debug, Arbitrary)]
struct Input {
    #[arbitrary(with = instruction)]
    code: [u8; 15],
    at: u16,
    #[arbitrary(with = number)]
    rip: u64,
    #[arbitrary(with = number)]
    base: u64,
    attributes: u16,
    control: [u64; 4],
    user: bool,
    words: Vec<(u16, u64)>,
    registers: [u64; 16],
}

/// Memory in which words and an instruction lie, and a state.
fn set_up(u: &mut Unstructured) -> Result<(Fake, Ram, VcpuState)> {
    let input: Input = u.arbitrary()?;
    let bytes = 2 * MIB;
    let (mut fake, ram) = (Fake::new(bytes, 1), Ram::new(bytes));
    for (word, value) in input.words {
        // Tables that point to each other are more likely below 512 KiB.
        fake.memory[usize::from(word) * 8..][..8].copy_from_slice(&(value & !0x000f_ffff_fff0_0000).to_le_bytes());
    }
    fake.memory[input.at.into()..][..MAX_BYTES].copy_from_slice(&input.code);
    let [cr0, cr3, cr4, efer] = input.control;
    let save = Save { rip: input.rip, cr0, cr3: cr3 & 0x7_ffff, cr4, efer, ..Save::default() };
    let mut state = VcpuState { gpr: input.registers, save, ..VcpuState::default() };
    state.cpl = if input.user { 3 } else { 0 };
    state.segments[1] = Segment { selector: 8, attributes: input.attributes, limit: u32::MAX, base: input.base };
    if u.arbitrary()? {
        // Without paging the instruction is found.
        (state.cr0, state.rip, state.segments[1].base) = (1, input.at.into(), 0);
    }
    Ok((fake, ram, state))
}

/// The decoder and the walk of the guest's page tables.
pub fn instructions(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((mut fake, mut ram, state)) = set_up(&mut input) else { return };
    let mut pages = CodePages::default();
    if let Ok(code) = pages.fetch(&mut fake, &mut ram, &state) {
        // None where there is no memory.
        assert!(code.bytes().len() <= MAX_BYTES);
        if let Some(instruction) = code.decode() {
            assert!((1..=code.bytes().len()).contains(&instruction.len()), "{instruction:?}");
            let next = code.after(instruction.len());
            assert!(code_bits(&state) == 64 || next <= u64::from(u32::MAX));
        }
        // What was found once is found again.
        let again = pages.fetch(&mut fake, &mut ram, &state).map(|code| code.bytes().to_vec());
        assert_eq!(again.as_deref(), Ok(code.bytes()));
        pages.matches(&fake, &ram, state.rip, [0x0f, 0x32]);
        pages.matches(&fake, &ram, state.rip.wrapping_add(6), [0x0f, 0x01, 0xd9]);
    }
    translate(&mut fake, &mut ram, &state, &mut input);
    let mut copy = VcpuState::default();
    fake.fill(0, Groups::empty(), Groups::empty(), &mut copy);
}

/// An address has one place, whoever asks; and who may write it may read it.
fn translate(fake: &mut Fake, ram: &mut Ram, state: &VcpuState, input: &mut Unstructured) {
    let paging = Paging::of(state);
    for _ in 0..8 {
        if input.is_empty() {
            return;
        }
        let Ok(linear) = number(input) else { return };
        let before = fake.memory.clone();
        let written = paging.translate(fake, ram, linear, Access::Write);
        let read = paging.translate(fake, ram, linear, Access::Read);
        match (written, read) {
            (Ok(written), Ok(read)) => assert_eq!(written, read),
            // Marking an entry accessed may change another entry of the same walk, if a table is its own.
            (Ok(_), Err(fault)) => assert!(before != fake.memory, "{fault:?}"),
            (Err(fault), _) => assert!(fault.code & 2 != 0),
        }
    }
}
