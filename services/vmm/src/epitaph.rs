//! What a vCPU looked like when its VM crashed: what an engineer asks first.

use caisson_proto::vcpu::{Exit, Groups, VcpuState};

use crate::insn::walk::{Access, EFER_LMA, Paging};
use crate::platform::{Event, Platform};
use crate::vmm::Vmm;

/// Words of the stack that are shown.
const STACK: usize = 16;

impl<P: Platform> Vmm<P> {
    /// Logs the registers, the code at rip and the top of the stack, whatever was logged before.
    pub(crate) fn epitaph(&mut self, exit: &Exit, state: &mut VcpuState) {
        self.fill(exit, Groups::all(), state);
        let names = ["rax rcx rdx rbx", "rsp rbp rsi rdi", "r8  r9  r10 r11", "r12 r13 r14 r15"];
        let (quads, _) = state.gpr.as_chunks::<4>();
        for (name, values) in names.iter().zip(quads) {
            self.line(name, *values);
        }
        self.line("rip rflags cpl efer", [state.rip, state.rflags, state.cpl.into(), state.efer]);
        self.line("cr0 cr2 cr3 cr4", [state.cr0, state.cr2, state.cr3, state.cr4]);
        for (name, segment) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().zip(state.segments) {
            self.segment(name, segment);
        }
        for (name, segment) in [("ldtr", state.ldtr), ("tr", state.tr), ("gdtr", state.gdtr), ("idtr", state.idtr)] {
            self.segment(name, segment);
        }
        self.line("dr6 dr7 shadow xcr0", [state.dr6, state.dr7, state.shadow, state.xcr0]);
        if let Some(code) = self.fetch(exit, state) {
            self.line("code at rip", [code.head(), 0, 0, 0]);
        }
        self.walk(state);
        let paging = Paging::of(state);
        let stack = state.segments[2].base.wrapping_add(state.gpr[4]);
        for n in 0..STACK / 4 {
            let mut values = [0; 4];
            for (k, value) in values.iter_mut().enumerate() {
                let linear = stack.wrapping_add(8 * (4 * n + k) as u64);
                let at = paging.translate(&mut self.platform, &mut self.ram, linear, Access::Read);
                let Some(read) = at.ok().and_then(|at| self.ram.read_u64(&mut self.platform, at).ok()) else { return };
                *value = read;
            }
            self.line("stack", values);
        }
    }

    /// The four levels that translate cr2, as far as they are there.
    fn walk(&mut self, state: &VcpuState) {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        if state.efer & EFER_LMA == 0 {
            return;
        }
        let mut entries = [0; 4];
        let mut table = state.cr3;
        for (entry, shift) in entries.iter_mut().zip([39, 30, 21, 12]) {
            let at = (table & ADDRESS) + (state.cr2 >> shift & 0x1ff) * 8;
            let Ok(read) = self.ram.read_u64(&mut self.platform, at) else { break };
            *entry = read;
            table = read;
            if read & 1 == 0 || (shift < 39 && read & 0x80 != 0) {
                break;
            }
        }
        self.line("page tables for cr2", entries);
    }

    fn segment(&mut self, name: &'static str, segment: caisson_proto::vcpu::Segment) {
        let (selector, attributes) = (u64::from(segment.selector), u64::from(segment.attributes));
        self.line(name, [selector, attributes, segment.limit.into(), segment.base]);
    }

    fn line(&mut self, name: &'static str, values: [u64; 4]) {
        self.platform.log(Event::Epitaph { name, values });
    }
}
