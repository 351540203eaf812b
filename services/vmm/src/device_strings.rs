//! LODS, SCAS, MOVS and CMPS of which an operand is a device. STOS is with the other instructions.

use caisson_proto::vcpu::{Exit, Groups, Resume, VcpuState};
use iced_x86::{Instruction, Mnemonic, Register};

use crate::exits::{PF, exception};
use crate::insn::decode::code_bits;
use crate::insn::operand::{Alu, compute, mask, write_register};
use crate::insn::walk::{Access, PageFault, Paging};
use crate::mmio::{address_width, advance};
use crate::platform::Platform;
use crate::strings::{Hindrance, segment_base};
use crate::vmm::Vmm;

const RSI: usize = 6;
const RDI: usize = 7;
const ZF: u64 = 1 << 6;

/// What an instruction does with its elements.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Load,
    Scan,
    Move,
    Compare,
}

impl Kind {
    fn of(instruction: &Instruction) -> Option<Self> {
        use Mnemonic::*;
        // MOVSD and CMPSD are SSE's too.
        if !instruction.is_string_instruction() {
            return None;
        }
        Some(match instruction.mnemonic() {
            Lodsb | Lodsw | Lodsd | Lodsq => Self::Load,
            Scasb | Scasw | Scasd | Scasq => Self::Scan,
            Movsb | Movsw | Movsd | Movsq => Self::Move,
            Cmpsb | Cmpsw | Cmpsd | Cmpsq => Self::Compare,
            _ => return None,
        })
    }
}

impl<P: Platform> Vmm<P> {
    /// One element of such an instruction, which ends at `after`. `None` if it is none, or an element straddles pages.
    pub(crate) fn device_string(
        &mut self, at: usize, exit: &Exit, state: &mut VcpuState, instruction: &Instruction, after: u64,
    ) -> Option<Resume> {
        let kind = Kind::of(instruction)?;
        let bytes = instruction.memory_size().size();
        match self.string_element(at, state, instruction, kind, bytes)? {
            Ok(()) => {}
            Err(Hindrance::Fault(PageFault { linear, code })) => {
                state.cr2 = linear;
                let groups = Groups::CORE | Groups::CONTROL;
                return Some(Resume { inject: exception(PF, Some(code)), groups, ..Resume::at(0, 0) });
            }
            Err(Hindrance::Absent(gpa)) => return Some(self.absent(at, exit, state, gpa)),
        }
        let (repe, repne) = (instruction.has_rep_prefix(), instruction.has_repne_prefix());
        let equal = state.rflags & ZF != 0;
        let found = matches!(kind, Kind::Scan | Kind::Compare) && (repe && !equal || repne && equal);
        let goes_on = (repe || repne) && self.count_down(state, instruction) && !found;
        if !goes_on {
            state.rip = after;
        }
        Some(Self::loaded(Groups::CORE))
    }

    fn string_element(
        &mut self, at: usize, state: &mut VcpuState, instruction: &Instruction, kind: Kind, bytes: usize,
    ) -> Option<Result<(), Hindrance>> {
        let [rax, .., rsi, rdi] = *state.gpr.first_chunk::<8>()?;
        let target_access = if kind == Kind::Move { Access::Write } else { Access::Read };
        let mut places = [0; 2];
        let source = (kind != Kind::Scan).then_some((instruction.memory_segment(), rsi, Access::Read));
        let target = (kind != Kind::Load).then_some((Register::ES, rdi, target_access));
        for (place, operand) in places.iter_mut().zip([source, target]) {
            let Some((segment, offset, access)) = operand else { continue };
            let linear = segment_base(state, segment).wrapping_add(offset & mask(address_width(instruction)));
            let linear = if code_bits(state) == 64 { linear } else { linear & 0xffff_ffff };
            if (linear & 0xfff) as usize + bytes > 0x1000 {
                return None;
            }
            match Paging::of(state).translate(&mut self.platform, &mut self.ram, linear, access) {
                Ok(physical) => *place = physical,
                Err(fault) => return Some(Err(Hindrance::Fault(fault))),
            }
            if let Some(gpa) = self.first_absent(&[*place]) {
                return Some(Err(Hindrance::Absent(gpa)));
            }
        }
        let [from, to] = places;
        match kind {
            Kind::Load => {
                let value = self.element_read(at, from, bytes);
                let register = match bytes {
                    1 => Register::AL,
                    2 => Register::AX,
                    4 => Register::EAX,
                    _ => Register::RAX,
                };
                write_register(state, register, value)?;
            }
            Kind::Move => {
                let value = self.element_read(at, from, bytes);
                self.element_write(at, to, bytes, value);
            }
            Kind::Scan | Kind::Compare => {
                let left = if kind == Kind::Scan { rax } else { self.element_read(at, from, bytes) };
                let right = self.element_read(at, to, bytes);
                (_, state.rflags) = compute(Alu::Sub, left, right, bytes, state.rflags);
            }
        }
        if kind != Kind::Scan {
            advance(state, instruction, bytes, RSI);
        }
        if kind != Kind::Load {
            advance(state, instruction, bytes, RDI);
        }
        Some(Ok(()))
    }

    /// Reads memory or a device.
    pub(crate) fn element_read(&mut self, at: usize, gpa: u64, bytes: usize) -> u64 {
        if !self.ram.contains(gpa) {
            return self.device_read(at, gpa, bytes);
        }
        let mut value = [0; 8];
        let target = value.get_mut(..bytes).unwrap_or_default();
        // It is backed; what is the guest's alone reads as zeros.
        let _ = self.ram.read(&mut self.platform, gpa, target);
        u64::from_le_bytes(value)
    }

    /// Writes memory or a device.
    pub(crate) fn element_write(&mut self, at: usize, gpa: u64, bytes: usize, value: u64) {
        if !self.ram.contains(gpa) {
            return self.device_write(at, gpa, bytes, value);
        }
        let value = value.to_le_bytes();
        let _ = self.ram.write(&mut self.platform, gpa, value.get(..bytes).unwrap_or_default());
    }
}
