//! The world switch (APM volume 2, sections 15.5 and 15.6).
//!
//! From CLGI to STGI nothing can interrupt: the guest's FS, GS, TR and system-call registers are in the CPU while the
//! kernel answers an exit by itself, so that such an answer costs neither VMSAVE nor VMLOAD. Rust code runs there; it
//! uses none of these registers, and the IDT is the host's since the exit.
//!
//! STI behind CLGI lets the guest be left for physical interrupts: with V_INTR_MASKING, it is the host's IF at VMRUN
//! that masks them.

use super::{resident, vcpu::Vcpu};
use crate::prelude::*;
use core::arch::naked_asm;
use zerocopy::FromZeros;

const VMCB: usize = offset_of!(Vcpu, vmcb);

impl Vcpu {
    /// Runs the guest until somebody else than this module must answer, and returns the exit code; `None` if an
    /// interrupt is pending, to be taken before the guest is entered again. Events that were broken off wait for the
    /// next entry.
    pub(crate) fn enter(&mut self) -> Option<u16> {
        exits::before(&self.vmcb, &mut self.extra);
        if self.extra.reload != 0 {
            resident::reload(self);
        }
        let vmcb = self.spa(VMCB);
        // SAFETY: the VMCB's FS, GS, TR, LDTR and system-call registers are the guest's; the kernel uses none of
        // them until they are the host's again, which come from where `features::enable` put them, and GIF = 0 keeps
        // away what would. The frames are the vCPU's own, mapped and set up, and this CPU is ready for guests.
        // Interrupts are off again, as they were on entry to this function, before GIF is 1.
        unsafe {
            asm!("clgi", "sti", "vmload rax", in("rax") vmcb.0, options(nostack));
            switch(self, vmcb);
            asm!("vmsave rax", "mov rax, {host}", "vmload rax", "cli", "stgi",
                host = in(reg) this().host.0, inout("rax") vmcb.0 => _, options(nostack));
        }
        let code = exits::narrow(self.vmcb.control.exit_code);
        if code == code::INVALID {
            self.contain_failed_entry();
        }
        let by_virq = || this().svm.limits.quirks.interrupts_by_virq;
        if exits::is_interrupt(code) {
            exits::keep_event(code, &mut self.vmcb, &mut self.extra, by_virq());
            return None;
        }
        exits::after(code, &mut self.vmcb, &mut self.extra, by_virq);
        Some(code)
    }

    /// QEMU stores the host's registers over the guest's when VMRUN refuses a VMCB; the vmm must not see them. It
    /// gives the same code for a guest's write of a reserved bit to CR3 or CR4, which is no failure of the entry.
    #[cold]
    fn contain_failed_entry(&mut self) {
        if self.vmcb.save.cr3 == this().cr3 {
            self.vmcb.save.zero();
            self.vmcb.save.efer = SVME;
        }
    }
}

/// Answers what needs nobody's decision: CPUID and hypercalls from the table, WBINVD by nothing but counting it, as no
/// device of a guest's reads memory around the caches. False if the vmm is to answer.
extern "C" fn answer(Vcpu { vmcb, page, cpuid, .. }: &mut Vcpu) -> bool {
    let Vmcb { control, save, .. } = &mut *vmcb;
    // With TF set, a #DB is due, and that is the vmm's.
    if save.rflags & 1 << 8 != 0 {
        return false;
    }
    let length = match exits::narrow(control.exit_code) {
        code::CPUID => {
            let answer = cpuid.look_up(save.rax as u32, page.get(gpr(1)) as u32, save.cr4);
            let Some([eax, ebx, ecx, edx]) = answer else { return false };
            save.rax = eax.into();
            for (number, value) in [(3, ebx), (1, ecx), (2, edx)] {
                page.set(gpr(number), value.into());
            }
            2
        }
        code::VMMCALL => {
            let Some(rax) = cpuid.hypercall(save.rax).filter(|_| save.cpl == 0) else { return false };
            save.rax = rax;
            3
        }
        _ => {
            let count = offset_of!(VcpuState, wbinvds);
            page.set(count, page.get(count).wrapping_add(1));
            2
        }
    };
    exits::advance(vmcb, length);
    true
}

/// Enters the guest and comes back at the next exit that [`answer`] doesn't answer.
///
/// Registers that the C ABI preserves stay the guest's meanwhile, but for rbx, which is part of the
/// answer. rax and rsp are in the VMCB.
///
/// # Safety
/// The state page's first 16 words are the general-purpose registers; the VMCB has reset state or what the CPU left
/// there, and checked changes. `vmcb` is its physical address. GIF is 0 and VMLOAD was executed.
///
/// VMRUN restores rip, rsp, rax, rflags, the segments, the control registers and the IDT (section 15.6); the others
/// are restored here or the caller's to lose. The guest reaches no memory of the host's but what its nested tables
/// map.
#[unsafe(naked)]
unsafe extern "C" fn switch(vcpu: &mut Vcpu, vmcb: Spa) {
    naked_asm!(
        ".irp r, rbx, rbp, r12, r13, r14, r15",
        "push \\r",
        ".endr",
        "sub rsp, 8", // keeps the stack aligned at the call
        "push rsi",
        "push rdi",
        "mov rax, rsi",
        "mov rbp, [rdi + 8 * 5]",
        ".irp n, 12, 13, 14, 15",
        "mov r\\n, [rdi + 8 * \\n]",
        ".endr",
        "2:",
        "mov rcx, [rdi + 8 * 1]",
        "mov rdx, [rdi + 8 * 2]",
        "mov rbx, [rdi + 8 * 3]",
        "mov rsi, [rdi + 8 * 6]",
        ".irp n, 8, 9, 10, 11",
        "mov r\\n, [rdi + 8 * \\n]",
        ".endr",
        "mov rdi, [rdi + 8 * 7]",
        "vmrun rax",
        "mov rax, [rsp]",
        "mov [rax + 8 * 1], rcx",
        "mov [rax + 8 * 2], rdx",
        "mov [rax + 8 * 3], rbx",
        "mov [rax + 8 * 6], rsi",
        "mov [rax + 8 * 7], rdi",
        ".irp n, 8, 9, 10, 11",
        "mov [rax + 8 * \\n], r\\n",
        ".endr",
        "mov rdi, rax",
        "mov rcx, [rax + {exit_code}]",
        ".irp answered, {cpuid}, {wbinvd}",
        "cmp ecx, \\answered",
        "je 4f",
        ".endr",
        "cmp ecx, {hypercall}",
        "jne 3f",
        "4:",
        "call {answer}",
        "mov rdi, [rsp]",
        "test al, al",
        "mov rax, [rsp + 8]",
        "jnz 2b",
        "3:",
        "mov [rdi + 8 * 5], rbp",
        ".irp n, 12, 13, 14, 15",
        "mov [rdi + 8 * \\n], r\\n",
        ".endr",
        "add rsp, 24",
        ".irp r, r15, r14, r13, r12, rbp, rbx",
        "pop \\r",
        ".endr",
        "ret",
        exit_code = const VMCB + offset_of!(Vmcb, control.exit_code),
        cpuid = const code::CPUID,
        wbinvd = const code::WBINVD,
        hypercall = const code::VMMCALL,
        answer = sym answer,
    );
}
