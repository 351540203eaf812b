//! The end of an NMI's handler: the guest leaves at its IRET, and is let step over it, since only then may another come.
//!
//! An IRET that faults takes the step's TF into the frame of its exception; the step follows when the handler has returned.

use caisson_proto::vcpu::{Exit, Groups, Resume, VcpuState};

use crate::exits::again;
use crate::platform::Platform;
use crate::vcpu::Nmis;
use crate::vmm::Vmm;

/// RFLAGS.TF.
const TRAP: u64 = 1 << 8;
/// DR6: a single step.
const STEP: u64 = 1 << 14;
/// DR6: breakpoints 0 to 3, and an access to a debug register.
const OTHERS: u64 = 0x200f;

impl<P: Platform> Vmm<P> {
    pub(crate) fn is_returning(&self, at: usize) -> bool {
        self.vcpus.get(at).is_some_and(|vcpu| matches!(vcpu.nmis, Nmis::Returning { .. }))
    }

    /// The guest stands at an IRET.
    pub(crate) fn returns(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let Some(vcpu) = self.vcpus.get_mut(at).filter(|vcpu| vcpu.nmis == Nmis::Masked) else { return again(exit) };
        self.platform.fill(exit.vcpu, Groups::CORE | Groups::DEBUG, Groups::CORE, state);
        vcpu.nmis = Nmis::Returning { dr6: state.dr6, stepped: state.rflags & TRAP != 0 };
        state.rflags |= TRAP;
        Resume { groups: Groups::CORE, ..again(exit) }
    }

    /// It has executed it.
    pub(crate) fn returned(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return self.stop() };
        let Nmis::Returning { dr6, stepped } = vcpu.nmis else { return again(exit) };
        vcpu.nmis = Nmis::Open;
        self.fill(exit, Groups::DEBUG, state);
        if !stepped {
            state.dr6 = state.dr6 & !STEP | dr6 & STEP;
        }
        let others = state.dr6 & !dr6 & OTHERS != 0;
        let resume = if stepped || others { self.reflect(exit, state) } else { again(exit) };
        Resume { groups: resume.groups | Groups::DEBUG, ..resume }
    }
}
