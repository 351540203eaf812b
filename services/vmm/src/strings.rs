//! INS and OUTS: string input and output.

use caisson_proto::vcpu::{Exit, Groups, Resume, VcpuState};
use iced_x86::{Instruction, Mnemonic, Register};

use crate::exits::{UD, exception, fault};
use crate::insn::decode::code_bits;
use crate::insn::operand::mask;
use crate::insn::walk::{Access, PageFault, Paging};
use crate::mmio::{address_width, advance};
use crate::platform::Platform;
use crate::vmm::Vmm;

/// Elements that one exit moves at the most; then the instruction comes back.
const MAX_ELEMENTS: u32 = 256;

/// Why an element isn't moved.
pub(crate) enum Hindrance {
    /// Its address leads nowhere.
    Fault(PageFault),
    /// It lies in this page of memory, which isn't backed yet.
    Absent(u64),
}

impl<P: Platform> Vmm<P> {
    /// A page that has to be backed before the element in it is moved. The instruction comes back then.
    pub(crate) fn absent(&mut self, at: usize, exit: &Exit, state: &mut VcpuState, gpa: u64) -> Resume {
        self.memory_fault(at, &Exit { info2: gpa, ..*exit }, state)
    }

    /// The first of these addresses that is memory which isn't backed yet.
    pub(crate) fn first_absent(&self, places: &[u64]) -> Option<u64> {
        places.iter().copied().find(|gpa| self.ram.contains(*gpa) && !self.ram.is_backed(*gpa))
    }

    pub(crate) fn string_io(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let Some(code) = self.fetch(exit, state) else { return self.unemulated(at, exit, state) };
        let Some(instruction) = code.decode() else { return fault(exit, UD, None) };
        let (bytes, input) = match instruction.mnemonic() {
            Mnemonic::Insb => (1, true),
            Mnemonic::Insw => (2, true),
            Mnemonic::Insd => (4, true),
            Mnemonic::Outsb => (1, false),
            Mnemonic::Outsw => (2, false),
            Mnemonic::Outsd => (4, false),
            _ => return self.unemulated(at, exit, state),
        };
        let width = mask(address_width(&instruction));
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let port = state.gpr[2] as u16;
        let mut left = if repeated { state.gpr[1] & width } else { 1 };
        let mut budget = MAX_ELEMENTS;
        while left != 0 && budget != 0 && !self.is_over() {
            match self.move_element(at, state, &instruction, port, bytes, input) {
                Ok(()) => {}
                Err(Hindrance::Fault(PageFault { linear, code })) => {
                    state.cr2 = linear;
                    let groups = Groups::CORE | Groups::CONTROL;
                    return Resume { inject: exception(14, Some(code)), groups, ..Resume::at(0, 0) };
                }
                // What was moved is kept, and the instruction comes back for the rest.
                Err(Hindrance::Absent(_)) if budget < MAX_ELEMENTS => break,
                Err(Hindrance::Absent(gpa)) => return self.absent(at, exit, state, gpa),
            }
            left -= 1;
            budget -= 1;
            if repeated {
                let [_, rcx, ..] = &mut state.gpr;
                *rcx = if width == 0xffff { *rcx & !width | left } else { left };
            }
        }
        if left == 0 {
            state.rip = code.after(instruction.len());
        }
        Self::loaded(Groups::CORE)
    }

    fn move_element(
        &mut self, at: usize, state: &mut VcpuState, instruction: &Instruction, port: u16, bytes: u8, input: bool,
    ) -> Result<(), Hindrance> {
        let width = mask(address_width(instruction));
        let [.., rsi, rdi] = *state.gpr.first_chunk::<8>().unwrap_or(&[0; 8]);
        let (segment, offset, register) =
            if input { (Register::ES, rdi, 7) } else { (instruction.memory_segment(), rsi, 6) };
        let linear = segment_base(state, segment).wrapping_add(offset & width);
        let linear = if code_bits(state) == 64 { linear } else { linear & 0xffff_ffff };
        let paging = Paging::of(state);
        let access = if input { Access::Write } else { Access::Read };
        // An element may straddle two pages: find every byte before anything happens.
        let mut places = [0; 4];
        for (n, place) in places.iter_mut().enumerate().take(usize::from(bytes)) {
            let linear = linear.wrapping_add(n as u64);
            let physical = paging.translate(&mut self.platform, &mut self.ram, linear, access);
            *place = physical.map_err(Hindrance::Fault)?;
        }
        let count = usize::from(bytes);
        if let Some(gpa) = self.first_absent(places.get(..count).unwrap_or_default()) {
            return Err(Hindrance::Absent(gpa));
        }
        let [first, ..] = places;
        let last = places.get(count.saturating_sub(1)).copied().unwrap_or(first);
        // A device in one page sees one access.
        let (pieces, width) = if first >> 12 == last >> 12 { (1, count) } else { (count, 1) };
        let places = places.iter().take(pieces);
        if input {
            let value = self.port_read(port, bytes).to_le_bytes();
            for (place, part) in places.zip(value.chunks(width)) {
                self.element_write(at, *place, width, little(part));
            }
        } else {
            let mut value = [0xff; 4];
            for (place, part) in places.zip(value.chunks_mut(width)) {
                let element = self.element_read(at, *place, width).to_le_bytes();
                part.iter_mut().zip(element).for_each(|(to, from)| *to = from);
            }
            self.port_write(at, port, bytes, u32::from_le_bytes(value));
        }
        advance(state, instruction, usize::from(bytes), register);
        Ok(())
    }
}

/// The number that the first bytes of up to eight are, least first.
fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The base of a data segment: in 64-bit mode only fs and gs have one.
pub(crate) fn segment_base(state: &VcpuState, segment: Register) -> u64 {
    let index = match segment {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    };
    if code_bits(state) == 64 && index < 4 { 0 } else { state.segments.get(index).map_or(0, |s| s.base) }
}
