//! Control and debug registers, XCR0, and state that the processor refused (APM volume 2, sections 3.1, 15.8.1).

use caisson_proto::supervisor::CrashKind;
use caisson_proto::vcpu::{Exit, Groups, Resume, VcpuState};
use iced_x86::{Mnemonic, OpKind, Register};

use crate::exits::{GP, UD, done, fault};
use crate::insn::decode::LONG;
use crate::insn::operand::{read_register, write_register};
use crate::insn::walk::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA};
use crate::platform::{Event, Platform};
use crate::vmm::Vmm;

const CR0_CD: u64 = 1 << 30;
const CR0_NW: u64 = 1 << 29;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR4_PCIDE: u64 = 1 << 17;
const EFER_LME: u64 = 1 << 8;
/// VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT UMIP FSGSBASE OSXSAVE SMEP SMAP.
const CR4_KNOWN: u64 = 0x0035_0fff;

impl<P: Platform> Vmm<P> {
    /// A MOV from or to a control or debug register, CLTS, LMSW or SMSW.
    pub(crate) fn control_exit(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let Some(code) = self.fetch(exit, state) else { return self.unemulated(at, exit, state) };
        let Some(instruction) = code.decode() else { return fault(exit, UD, None) };
        self.fill(exit, Groups::DEBUG, state);
        let next = code.after(instruction.len());
        let (target, source) = (instruction.op0_register(), instruction.op1_register());
        let mut groups = Groups::CORE;
        let accepted = match instruction.mnemonic() {
            Mnemonic::Clts => {
                groups |= Groups::CONTROL;
                state.cr0 &= !CR0_TS;
                true
            }
            Mnemonic::Lmsw if instruction.op0_kind() == OpKind::Register => {
                groups |= Groups::CONTROL;
                let low = read_register(state, target).unwrap_or(0) & 0xf;
                // PE can be set by this, not cleared.
                let value = state.cr0 & !0xe | low;
                write_cr0(state, value)
            }
            Mnemonic::Mov if target.is_cr() || target.is_dr() => {
                let wide = instruction.op1_register().size() == 8;
                let value = read_register(state, source).unwrap_or(0);
                groups |= if target.is_dr() { Groups::DEBUG } else { Groups::CONTROL };
                self.write_control(at, state, target, if wide { value } else { value & 0xffff_ffff })
            }
            Mnemonic::Mov if source.is_cr() || source.is_dr() => match self.read_control(at, state, source) {
                Some(value) => write_register(state, target, value).is_some(),
                None => false,
            },
            _ => return self.unemulated(at, exit, state),
        };
        if !accepted {
            return fault(exit, GP, Some(0));
        }
        state.rip = next;
        Self::loaded(groups)
    }

    fn read_control(&self, at: usize, state: &VcpuState, register: Register) -> Option<u64> {
        Some(match register {
            Register::CR0 => state.cr0,
            Register::CR2 => state.cr2,
            Register::CR3 => state.cr3,
            Register::CR4 => state.cr4,
            Register::CR8 => self.vcpus.get(at)?.apic.cr8(),
            Register::DR6 | Register::DR4 => state.dr6,
            Register::DR7 | Register::DR5 => state.dr7,
            Register::DR0 | Register::DR1 | Register::DR2 | Register::DR3 => *state.dr.get(register.number())?,
            _ => return None,
        })
    }

    fn write_control(&mut self, at: usize, state: &mut VcpuState, register: Register, value: u64) -> bool {
        match register {
            Register::CR0 => return write_cr0(state, value),
            Register::CR2 => state.cr2 = value,
            Register::CR3 if value >> 52 != 0 => return false,
            Register::CR3 => state.cr3 = value,
            Register::CR4 => {
                let leaves_pae = state.efer & EFER_LMA != 0 && value & CR4_PAE == 0;
                if value & !(CR4_KNOWN | crate::cpuid::cr4_keys(&self.cpuid)) != 0 || leaves_pae {
                    return false;
                }
                state.cr4 = value;
            }
            Register::CR8 if value > 15 => return false,
            Register::CR8 => {
                if let Some(vcpu) = self.vcpus.get_mut(at) {
                    vcpu.apic.set_cr8(value);
                }
            }
            Register::DR6 | Register::DR4 => state.dr6 = value & 0x1_e00f | 0xfffe_0ff0,
            Register::DR7 | Register::DR5 => state.dr7 = value & 0xffff_2bff | 0x400,
            Register::DR0 | Register::DR1 | Register::DR2 | Register::DR3 => {
                match state.dr.get_mut(register.number()) {
                    Some(debug) => *debug = value,
                    None => return false,
                }
            }
            _ => return false,
        }
        true
    }

    /// XSETBV, where it exits.
    pub(crate) fn xsetbv(&mut self, exit: &Exit, state: &mut VcpuState) -> Resume {
        let next = self.next(exit, state, [0x0f, 0x01, 0xd1]);
        let value = exit.rax & 0xffff_ffff | exit.rdx << 32;
        let supported = crate::cpuid::xcr0(&self.cpuid);
        let avx_without_sse = value & 6 == 4;
        if exit.rcx as u32 != 0 || value & 1 == 0 || value & !supported != 0 || avx_without_sse {
            return fault(exit, GP, Some(0));
        }
        self.fill(exit, Groups::XCR0, state);
        state.xcr0 = value;
        Resume { groups: Groups::XCR0, ..done(next, exit.rax) }
    }

    /// VMRUN refused the state. QEMU does so at a guest's MOV of reserved bits to CR3 or CR4: that is #GP.
    pub(crate) fn invalid(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let code = self.fetch(exit, state);
        let instruction = code.and_then(|code| code.decode());
        let is_move = instruction.is_some_and(|instruction| {
            let target = instruction.op0_register();
            instruction.mnemonic() == Mnemonic::Mov && matches!(target, Register::CR0 | Register::CR3 | Register::CR4)
        });
        if is_move {
            return fault(exit, GP, Some(0));
        }
        let bytes = code.map_or(0, |code| code.head());
        self.note(Event::Unemulated { code: exit.code, rip: exit.rip, bytes });
        self.epitaph(exit, state);
        self.crash(CrashKind::InvalidState, at, exit.rip, bytes);
        self.stop()
    }
}

/// MOV to CR0; false for #GP (APM volume 2, sections 3.1.1, 5.5.1 and 14.6.1).
fn write_cr0(state: &mut VcpuState, value: u64) -> bool {
    let (pages, protects) = (value & CR0_PG != 0, value & CR0_PE != 0);
    let bad_cache = value & CR0_NW != 0 && value & CR0_CD == 0;
    let did_page = state.cr0 & CR0_PG != 0;
    let long = state.efer & EFER_LME != 0;
    let is_64_bit = state.segments.get(1).is_some_and(|code| code.attributes & LONG != 0);
    let bad_start = pages && !did_page && long && (state.cr4 & CR4_PAE == 0 || is_64_bit);
    let bad_end = !pages && did_page && (state.cr4 & CR4_PCIDE != 0 || long && is_64_bit);
    if value >> 32 != 0 || (pages && !protects) || bad_cache || bad_start || bad_end {
        return false;
    }
    if pages && long {
        state.efer |= EFER_LMA;
    } else if !pages {
        state.efer &= !EFER_LMA;
    }
    state.cr0 = value | CR0_ET;
    true
}
