//! Instructions on device memory that aren't emulated: the vCPU executes them itself, aside.
//!
//! For one instruction it gets page tables that are its own but for the pages of devices, in whose place are copies of
//! what the instruction may read there. A single step brings it back, and what it wrote is written to the devices. A fault
//! arrives at handlers beside it that do nothing but leave the guest, and is then the guest's, at the instruction.

mod operands;
mod tables;

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_proto::exits::code;
use caisson_proto::vcpu::{Exit, Groups, Resume, Segment, VcpuState};
use iced_x86::{Instruction, Mnemonic, Register};

use self::operands::{Place, Refused};
use self::tables::{GATES, TASK, TASK_BYTES, Tables};
use crate::exits::{DB, PF, again, exception};
use crate::insn::decode::code_bits;
use crate::insn::walk::{Access, EFER_LMA, Paging};
use crate::platform::Platform;
use crate::vcpu::Life;
use crate::vmm::Vmm;

/// Pages of memory that it takes beside the guest's own.
pub use tables::PAGES;

const TRAP: u64 = 1 << 8;
const INTERRUPTS: u64 = 1 << 9;
const CR4_LA57: u64 = 1 << 12;
const CR4_PCIDE: u64 = 1 << 17;
const DR6_STEP: u64 = 1 << 14;
const DR7_OFF: u64 = 0x400;
/// A busy 64-bit task state segment that is present.
const TASK_ATTRIBUTES: u16 = 0x8b;
/// The gate of #GP, whose code segment serves the handlers.
const GATE: u64 = 13 * 16;
const HLT: [u8; 3] = [0xf4; 3];
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
const SINGLE_STEPPED: u16 = code::EXCEPTION + DB as u16;

/// What is exchanged.
const GROUPS: Groups =
    Groups::CORE.union(Groups::SEGMENTS).union(Groups::TABLES).union(Groups::CONTROL).union(Groups::DEBUG);

/// A step aside.
#[derive(Debug)]
struct Step {
    vcpu: usize,
    /// The guest's registers.
    saved: VcpuState,
    /// Where the handlers are.
    handlers: u64,
    /// Where it leaves the guest if no single step follows it: after a load of SS none does.
    next: Option<u64>,
    places: Vec<Place>,
}

/// Steps of a VM: one vCPU at a time makes one.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    has_pages: bool,
    step: Option<Box<Step>>,
}

impl Aside {
    /// Whether this vCPU is in a step.
    pub(crate) fn has(&self, at: usize) -> bool {
        self.step.as_ref().is_some_and(|step| step.vcpu == at)
    }

    /// The vCPU is reset.
    pub(crate) fn forget(&mut self, at: usize) {
        self.step.take_if(|step| step.vcpu == at);
    }
}

/// Whether it can be made aside at all.
fn is_possible(state: &VcpuState, instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let is_long = state.efer & EFER_LMA != 0 && state.cr4 & (CR4_LA57 | CR4_PCIDE) == 0;
    // These store or load what is another's meanwhile: flags, the descriptor table.
    let shows = matches!(
        instruction.mnemonic(),
        Pushf | Pushfd | Pushfq | Popf | Popfd | Popfq | Iret | Iretd | Iretq | Int | Int1 | Int3 | Into | Sidt
    );
    is_long && !shows && !instruction.is_vsib()
}

impl<P: Platform> Vmm<P> {
    /// Lets the vCPU execute an instruction aside. `None` if that can't be.
    pub(crate) fn step_aside(
        &mut self, at: usize, exit: &Exit, state: &mut VcpuState, instruction: &Instruction,
    ) -> Option<Resume> {
        if !is_possible(state, instruction) || self.is_returning(at) {
            return None;
        }
        if let Some(step) = &self.aside.step
            && self.vcpus.get(step.vcpu).is_some_and(|vcpu| vcpu.life == Life::Running)
        {
            // It is another's turn.
            return Some(again(exit));
        }
        if !self.aside.has_pages {
            let pages = caisson_proto::addr::Gfn(tables::BASE >> 12);
            self.platform.populate(pages, PAGES).ok()?;
            self.aside.has_pages = true;
        }
        self.fill(exit, GROUPS, state);
        let saved = *state;
        let selector = self.handlers_segment(&saved)?;
        let operands = match self.operands(state, instruction) {
            Ok(operands) => operands,
            Err(Refused::Fault(fault)) => {
                state.cr2 = fault.linear;
                let inject = exception(PF, Some(fault.code));
                return Some(Resume { inject, groups: Groups::CONTROL, ..again(exit) });
            }
            Err(Refused::Unknown) => return None,
        };
        // Where translation is needed beside the operands.
        let mut used: Vec<u64> = operands.iter().map(|operand| operand.linear).collect();
        used.extend([state.rip, state.gdtr.base, state.ldtr.base, instruction.next_ip()]);
        let loads_ss = instruction.op0_register() == Register::SS;
        let next = loads_ss.then(|| instruction.next_ip());
        let next_page = match next {
            Some(_) if code_bits(state) != 64 => return None,
            Some(next) if next & 0xfff > 0xffd => return None,
            Some(next) => Some(self.translate(&saved, next, Access::Fetch)? & !0xfff),
            None => None,
        };
        let mut tables = Tables::new(&mut self.platform, &mut self.ram, state.cr3)?;
        if let Some((next, page)) = next.zip(next_page) {
            let copy = tables.copy(page)?;
            tables.write(copy + (next & 0xfff), if state.cpl == 0 { &HLT } else { &VMMCALL })?;
            tables.redirect(next, copy)?;
        }
        let mut pages: Vec<(u64, u64)> = Vec::new();
        let mut places = Vec::new();
        for operand in operands {
            let page = operand.linear >> 12;
            let copy = match pages.iter().find(|(known, _)| *known == page) {
                Some((_, copy)) => *copy,
                None => {
                    let copy = tables.page()?;
                    tables.redirect(operand.linear, copy)?;
                    pages.push((page, copy));
                    copy
                }
            };
            places.push(Place { copy: copy | operand.linear & 0xfff, ..operand });
        }
        let handlers = tables.handlers(&used, selector)?;
        let root = tables.root();
        places.iter().for_each(|place| self.read_place(at, place));

        state.cr3 = root;
        state.idtr = Segment { limit: GATES as u32 - 1, base: handlers, ..Segment::default() };
        state.tr.attributes = TASK_ATTRIBUTES;
        (state.tr.limit, state.tr.base) = (TASK_BYTES as u32 - 1, handlers + TASK);
        state.rflags = state.rflags & !INTERRUPTS | TRAP;
        state.dr7 = DR7_OFF;
        self.aside.step = Some(Box::new(Step { vcpu: at, saved, handlers, next, places }));
        Some(Resume { groups: GROUPS, ..Resume::at(0, 0) })
    }

    /// The code segment that the guest has for its own handlers.
    fn handlers_segment(&mut self, state: &VcpuState) -> Option<u16> {
        let gate = state.idtr.base.wrapping_add(GATE + 2);
        let mut kernel = *state;
        kernel.cpl = 0;
        let at = self.translate(&kernel, gate, Access::Read)?;
        let mut selector = [0; 2];
        self.ram.read(&mut self.platform, at, &mut selector).ok()?;
        Some(u16::from_le_bytes(selector) & !3).filter(|selector| *selector != 0)
    }

    fn translate(&mut self, state: &VcpuState, linear: u64, access: Access) -> Option<u64> {
        Paging::of(state).translate(&mut self.platform, &mut self.ram, linear, access).ok()
    }

    /// An exit of a vCPU in a step. `None` if it isn't in one.
    pub(crate) fn aside_exit(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Option<Resume> {
        let step = self.aside.step.as_ref().filter(|step| step.vcpu == at)?;
        let handler = tables::vector_at(exit.rip.wrapping_sub(step.handlers));
        let is_next = step.next == Some(exit.rip);
        const LAST_EXCEPTION: u16 = code::EXCEPTION + 31;
        Some(match exit.code {
            code::KICK | code::TIMER | code::INTR | code::NMI | code::SMI | code::VINTR => again(exit),
            code::NPF if self.ram.contains(exit.info2) => self.memory_fault(at, exit, state),
            SINGLE_STEPPED => self.stepped(at, exit, state),
            code::HLT | code::VMMCALL if is_next => self.stepped(at, exit, state),
            code::HLT => match handler {
                Some(vector) => {
                    let error = tables::error_code(&self.platform);
                    self.faulted(exit, state, vector, error)
                }
                None => self.lost_aside(at, exit, state),
            },
            code::EXCEPTION..=LAST_EXCEPTION => {
                self.faulted(exit, state, (exit.code - code::EXCEPTION) as u8, exit.info1 as u32)
            }
            _ => self.lost_aside(at, exit, state),
        })
    }

    /// The instruction is executed.
    fn stepped(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let Some(step) = self.aside.step.take() else { return self.stop() };
        self.fill(exit, GROUPS, state);
        let Step { saved, handlers, places, .. } = *step;
        state.cr3 = saved.cr3;
        // The instruction itself may have loaded these two.
        if state.idtr.base == handlers {
            state.idtr = saved.idtr;
        }
        if state.tr.base == handlers + TASK {
            state.tr = saved.tr;
        }
        (state.dr6, state.dr7) = (saved.dr6, saved.dr7);
        const OURS: u64 = TRAP | INTERRUPTS;
        state.rflags = state.rflags & !OURS | saved.rflags & OURS;
        state.shadow = 0;
        places.iter().for_each(|place| self.write_place(at, place));
        let mut inject = 0;
        if saved.rflags & TRAP != 0 {
            state.dr6 |= DR6_STEP;
            inject = exception(DB, None);
        }
        Resume { inject, groups: GROUPS | Groups::EVENTS, ..Resume::at(0, 0) }
    }

    /// The instruction faulted.
    fn faulted(&mut self, exit: &Exit, state: &mut VcpuState, vector: u8, error: u32) -> Resume {
        let Some(step) = self.aside.step.take() else { return self.stop() };
        self.fill(exit, Groups::CONTROL, state);
        let cr2 = if vector == PF { state.cr2 } else { step.saved.cr2 };
        *state = step.saved;
        state.cr2 = cr2;
        let error = matches!(vector, 8 | 10..=14 | 17).then_some(error);
        Resume { inject: exception(vector, error), groups: GROUPS, ..Resume::at(0, 0) }
    }

    /// The instruction does something else that leaves the guest.
    fn lost_aside(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        if let Some(step) = self.aside.step.take() {
            self.platform.store(exit.vcpu, GROUPS, &step.saved);
            return self.unemulated(at, &Exit { rip: step.saved.rip, ..*exit }, state);
        }
        self.stop()
    }
}
