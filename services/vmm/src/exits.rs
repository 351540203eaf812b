//! From an exit's code to what handles it.

use caisson_proto::exits::code;
use caisson_proto::supervisor::CrashKind;
use caisson_proto::vcpu::{Exit, Groups, Resume, VcpuState};

use crate::insn::decode::Code;
use crate::platform::{DECODE, Event, Platform, filled};
use crate::vcpu::Life;
use crate::vmm::Vmm;

/// Encodings of general-purpose registers.
pub const RCX: usize = 1;
/// See [`RCX`].
pub const RDX: usize = 2;
/// See [`RCX`].
pub const RBX: usize = 3;
/// See [`RCX`].
pub const RSI: usize = 6;

/// #DB.
pub const DB: u8 = 1;
/// #UD.
pub const UD: u8 = 6;
/// #GP.
pub const GP: u8 = 13;
/// #PF.
pub const PF: u8 = 14;

/// The exit of #DB.
const SINGLE_STEPPED: u16 = code::EXCEPTION + DB as u16;

/// EVENTINJ for an exception (APM volume 2, section 15.20), with an error code if it has one.
pub fn exception(vector: u8, error: Option<u32>) -> u64 {
    let error_code = error.map_or(0, |error| 1 << 11 | u64::from(error) << 32);
    u64::from(vector) | 3 << 8 | 1 << 31 | error_code
}

impl<P: Platform> Vmm<P> {
    #[inline]
    pub(crate) fn dispatch(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        if let Some(resume) = self.aside_exit(at, exit, state) {
            return resume;
        }
        match exit.code {
            code::MSR => self.msr_exit(at, exit, state),
            code::IOIO => self.port_exit(at, exit, state),
            code::HLT => self.halt(at, exit, state),
            code::NPF => self.nested_fault(at, exit, state),
            code::VINTR => self.window_opened(at, exit, state),
            code::KICK | code::TIMER | code::INTR | code::NMI | code::SMI => again(exit),
            code::VMMCALL => self.hypercall(at, exit, state),
            code::CPUID => self.cpuid_exit(at, exit, state),
            code::WBINVD => self.skip(exit, state, [0x0f, 0x09]),
            code::INVD => self.skip(exit, state, [0x0f, 0x08]),
            code::PAUSE => self.skip(exit, state, [0xf3, 0x90]),
            code::RDTSC | code::RDTSCP => self.read_tsc(at, exit, state),
            code::XSETBV => self.xsetbv(exit, state),
            0x00..=0x3f | code::CR0_SEL_WRITE => self.control_exit(at, exit, state),
            // Exceptions go to the guest as they are.
            SINGLE_STEPPED if self.is_returning(at) => self.returned(at, exit, state),
            0x40..=0x5f => self.reflect(exit, state),
            code::IRET => self.returns(at, exit, state),
            code::SHUTDOWN => self.shut_down(at, exit, state),
            code::INVALID => self.invalid(at, exit, state),
            // What the CPUID table hides raises #UD.
            code::INVLPGA | code::VMRUN..=code::SKINIT if exit.code != code::VMMCALL => fault(exit, UD, None),
            code::MONITOR | code::MWAIT | code::MWAIT_ARMED => fault(exit, UD, None),
            code::RDPMC => fault(exit, GP, Some(0)),
            _ => self.unemulated(at, exit, state),
        }
    }

    /// The address after the instruction of an intercept, whose usual encoding is `usual`.
    pub(crate) fn next<const N: usize>(&mut self, exit: &Exit, state: &mut VcpuState, usual: [u8; N]) -> u64 {
        if exit.next_rip != 0 {
            return exit.next_rip;
        }
        if self.code.matches(&self.platform, &self.ram, exit.rip, usual) {
            return exit.rip.wrapping_add(N as u64);
        }
        match self.fetch(exit, state) {
            Some(code) if code.bytes().starts_with(&usual) => code.after(N),
            Some(code) => code.after(code.accepted_len().unwrap_or(N)),
            None => exit.rip.wrapping_add(N as u64),
        }
    }

    /// The bytes at the guest's rip, with CORE, SEGMENTS and CONTROL current.
    pub(crate) fn fetch(&mut self, exit: &Exit, state: &mut VcpuState) -> Option<Code> {
        self.fill(exit, DECODE, state);
        self.code.fetch(&mut self.platform, &mut self.ram, state).ok()
    }

    /// Makes groups of the scratch state current.
    pub(crate) fn fill(&mut self, exit: &Exit, groups: Groups, state: &mut VcpuState) {
        self.platform.fill(exit.vcpu, groups, filled(exit.code, exit.info1), state);
    }

    fn skip(&mut self, exit: &Exit, state: &mut VcpuState, usual: [u8; 2]) -> Resume {
        done(self.next(exit, state, usual), exit.rax)
    }

    fn halt(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let next = self.next(exit, state, [0xf4]);
        if let Some(vcpu) = self.vcpus.get_mut(at) {
            let interrupts_on = exit.flags.contains(caisson_proto::vcpu::ExitFlags::INTERRUPTS_ON);
            vcpu.life = Life::Halted { interrupts_on };
        }
        self.count_halt(at);
        done(next, exit.rax)
    }

    /// The guest can take an interrupt. A processor that forgets interrupt shadows (QEMU's) says so even between STI
    /// and HLT; an interrupt there would leave the guest halted with its work undone, so the HLT comes first.
    fn window_opened(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let early = exit.flags.contains(caisson_proto::vcpu::ExitFlags::SHADOW);
        if early && self.fetch(exit, state).is_some_and(|code| code.bytes().first() == Some(&0xf4)) {
            return self.halt(at, exit, state);
        }
        again(exit)
    }

    fn read_tsc(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        // QEMU reports RDTSCP as RDTSC, so look. Neither exits unless a board asks for it.
        let code = self.fetch(exit, state);
        let is_p = code.is_some_and(|code| code.bytes().starts_with(&[0x0f, 0x01]));
        let next = match (exit.next_rip, code) {
            (0, Some(code)) => code.after(code.decode().map_or(2, |instruction| instruction.len())),
            (0, None) => exit.rip.wrapping_add(2),
            (next, _) => next,
        };
        let offset = self.vcpus.get(at).map_or(0, |vcpu| vcpu.tsc_offset);
        let tsc = self.platform.now().wrapping_add(offset);
        if is_p {
            self.fill(exit, Groups::TSC, state);
            self.platform.set_gpr(exit.vcpu, RCX, state.tsc_aux & 0xffff_ffff);
        }
        self.platform.set_gpr(exit.vcpu, RDX, tsc >> 32);
        done(next, tsc & 0xffff_ffff)
    }

    /// A single step over an instruction that was executed for the guest ends in #DB, as any does.
    pub(crate) fn owe_trap(&mut self, at: usize, exit: &Exit, state: &mut VcpuState, mut resume: Resume) -> Resume {
        const SINGLE_STEP: u64 = 1 << 14;
        if !resume.groups.contains(Groups::DEBUG) {
            self.fill(exit, Groups::DEBUG, state);
        }
        state.dr6 |= SINGLE_STEP;
        resume.groups |= Groups::DEBUG;
        resume.inject = exception(DB, None);
        if let Some(vcpu) = self.vcpus.get_mut(at).filter(|vcpu| matches!(vcpu.life, Life::Halted { .. })) {
            vcpu.life = Life::Running;
        }
        resume
    }

    pub(crate) fn reflect(&mut self, exit: &Exit, state: &mut VcpuState) -> Resume {
        let vector = (exit.code - code::EXCEPTION) as u8;
        let error = matches!(vector, 8 | 10..=14 | 17 | 21).then_some(exit.info1 as u32);
        let mut resume = fault(exit, vector, error);
        if vector == PF {
            self.fill(exit, Groups::CORE | Groups::CONTROL, state);
            state.cr2 = exit.info2;
            resume.groups = Groups::CONTROL;
        }
        if vector == GP && self.is_svm(exit, state) {
            return fault(exit, UD, None);
        }
        resume
    }

    /// Whether the guest stands at one of SVM's instructions, of which the CPU checks everything before the intercept,
    /// but not EFER.SVME: that is set for it.
    fn is_svm(&mut self, exit: &Exit, state: &mut VcpuState) -> bool {
        let Some(code) = self.fetch(exit, state) else { return false };
        let is_prefix =
            |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
        let mut bytes = code.bytes().iter().skip_while(|byte| is_prefix(byte));
        let opcode = [bytes.next(), bytes.next(), bytes.next()];
        // D9 is VMMCALL.
        matches!(opcode, [Some(0x0f), Some(0x01), Some(0xd8 | 0xda..=0xdf)])
    }

    fn cpuid_exit(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let next = self.next(exit, state, [0x0f, 0xa2]);
        let (leaf, subleaf) = (exit.rax as u32, exit.rcx as u32);
        let [eax, ebx, mut ecx, edx] = crate::cpuid::answer(&self.cpuid, at as u8, leaf, subleaf);
        if leaf == 7 && subleaf == 0 {
            self.fill(exit, Groups::CONTROL, state);
            ecx |= crate::cpuid::keys_on(ecx, state.cr4);
        }
        for (number, value) in [(RBX, ebx), (RCX, ecx), (RDX, edx)] {
            self.platform.set_gpr(exit.vcpu, number, u64::from(value));
        }
        done(next, u64::from(eax))
    }

    /// An instruction that isn't emulated ends the VM.
    pub(crate) fn unemulated(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let bytes = self.fetch(exit, state).map_or(0, |code| code.head());
        self.note(Event::Unemulated { code: exit.code, rip: exit.rip, bytes });
        self.epitaph(exit, state);
        self.crash(CrashKind::Unemulated, at, exit.rip, u64::from(exit.code));
        self.stop()
    }
}

/// Resumes where the guest was.
pub(crate) fn again(exit: &Exit) -> Resume {
    Resume::at(exit.rip, exit.rax)
}

/// Resumes after an emulated instruction.
pub(crate) fn done(next: u64, rax: u64) -> Resume {
    Resume { clear_shadow: true, ..Resume::at(next, rax) }
}

/// Resumes with an exception at the instruction.
pub(crate) fn fault(exit: &Exit, vector: u8, error: Option<u32>) -> Resume {
    Resume { inject: exception(vector, error), ..again(exit) }
}
