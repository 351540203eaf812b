//! Nested page faults where the guest has neither memory nor a device that an instruction could mean: code that is
//! fetched from there, and page tables that lie there. Such a place reads as ones.

use caisson_proto::vcpu::{Exit, ExitFlags, Groups, Resume, VcpuState};
use iced_x86::{InstructionInfoFactory, OpAccess, Register};

use crate::exits::{PF, UD, exception, fault};
use crate::insn::decode::code_bits;
use crate::insn::operand::read_register;
use crate::insn::walk::{Access, PageFault, Paging};
use crate::platform::Platform;
use crate::strings::segment_base;
use crate::vmm::Vmm;

/// EXITINFO1: the fault came from a walk of the guest's page tables.
const TABLE_WALK: u64 = 1 << 33;
/// EXITINFO1: an instruction was fetched.
const FETCH: u64 = 1 << 4;
/// What an instruction is at most apart from its first byte.
const TAIL: u64 = 14;

impl<P: Platform> Vmm<P> {
    /// What the guest gets if this isn't an instruction's own access to a device. `None` if it is.
    pub(crate) fn hole(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Option<Resume> {
        // While an event was delivered: not the instruction at rip accessed this, and nobody tells what did.
        if exit.flags.contains(ExitFlags::EVENT_PENDING) {
            return Some(self.unemulated(at, exit, state));
        }
        if exit.info1 & TABLE_WALK != 0 {
            return Some(match self.bad_walk(exit, state) {
                Some(PageFault { linear, code }) => {
                    state.cr2 = linear;
                    Resume { inject: exception(PF, Some(code)), groups: Groups::CONTROL, ..crate::exits::again(exit) }
                }
                None => self.unemulated(at, exit, state),
            });
        }
        // FF FF is no instruction. What a device would give instead of ones isn't executed.
        (exit.info1 & FETCH != 0).then(|| fault(exit, UD, None))
    }

    /// The fault of an instruction whose fetch or operand needs a page table that lies in a hole.
    fn bad_walk(&mut self, exit: &Exit, state: &mut VcpuState) -> Option<PageFault> {
        let code = self.fetch(exit, state);
        let paging = Paging::of(state);
        let base = if code_bits(state) == 64 { 0 } else { segment_base(state, Register::CS) };
        let start = base.wrapping_add(exit.rip);
        for linear in [start, start.wrapping_add(TAIL)] {
            if let Some(fault) = self.reserved(&paging, linear, Access::Fetch) {
                return Some(fault);
            }
        }
        let instruction = code?.decode()?;
        let mut factory = InstructionInfoFactory::new();
        for operand in factory.info(&instruction).used_memory() {
            let writes = matches!(
                operand.access(),
                OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
            );
            let access = if writes { Access::Write } else { Access::Read };
            let bytes = operand.memory_size().size().max(1) as u64;
            let linear = operand.virtual_address(0, |register, _, _| register_of(state, register))?;
            for linear in [linear, linear.wrapping_add(bytes - 1)] {
                if let Some(fault) = self.reserved(&paging, linear, access) {
                    return Some(fault);
                }
            }
        }
        None
    }

    fn reserved(&mut self, paging: &Paging, linear: u64, access: Access) -> Option<PageFault> {
        let result = paging.translate(&mut self.platform, &mut self.ram, linear, access);
        result.err().filter(PageFault::is_reserved)
    }
}

/// A register as an address is computed from it: of a segment its base.
pub(crate) fn register_of(state: &VcpuState, register: Register) -> Option<u64> {
    if register.is_segment_register() {
        return Some(segment_base(state, register));
    }
    if register.is_ip() {
        return Some(state.rip);
    }
    read_register(state, register)
}
