//! The world switch (APM volume 2, sections 15.5 and 15.6).
//!
//! From CLGI to STGI nothing can interrupt: the guest's FS, GS, TR and system-call registers are in the CPU while the
//! kernel answers an exit by itself, so that such an answer costs neither VMSAVE nor VMLOAD. Rust code runs there; it
//! uses none of these registers, and the IDT is the host's since the exit.
//!
//! STI behind CLGI lets the guest be left for physical interrupts: with V_INTR_MASKING, it is the host's IF at VMRUN
//! that masks them.

use core::arch::asm;

use caisson_core::svm::cpuid::Answer;
use caisson_core::svm::events;
use caisson_core::svm::exits::{self, Answerer};
use caisson_core::svm::state::{SVME, StatePage, gpr};
use caisson_proto::addr::Spa;
use caisson_proto::vcpu::code;
use zerocopy::FromZeros;

use super::cpu::Cpu;
use super::instructions::read_cr3;
use super::resident;
use super::vcpu::{Parts, Vcpu};

/// Why the kernel has the CPU again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// An interrupt is pending: take it, then enter again.
    Interrupt,
    /// The vmm answers. The exit code, for [`Vcpu::exit`].
    Exit(u16),
}

impl Vcpu {
    /// Runs the guest until somebody else than this module must answer. Events that were broken off wait for the
    /// next entry.
    pub fn enter(&mut self, cpu: &Cpu) -> Left {
        let extra = self.parts().extra;
        if extra.live == 0 {
            self.switch_in(cpu);
        } else if extra.reload != 0 {
            resident::reload(&mut self.registers(cpu));
        }
        let Parts { vmcb, extra, .. } = self.parts();
        exits::before(vmcb, extra);
        let (state, vmcb) = (self.state(), self.vmcb_spa());
        // SAFETY: the VMCB's FS, GS, TR, LDTR and system-call registers are the guest's; the kernel uses none of
        // them until `leave`, and GIF = 0 keeps away what would.
        unsafe { asm!("clgi", "sti", "vmload rax", in("rax") vmcb.0, options(nostack)) };
        let code = loop {
            // SAFETY: the frames of `self` are the vCPU's own, mapped and set up; `Cpu::init` ran here, or there
            // would be no `Cpu`.
            unsafe { switch(state, vmcb) };
            let code = exits::narrow(self.parts().vmcb.control.exit_code);
            match exits::answerer(code) {
                Answerer::Cpuid if self.answer_cpuid() => {}
                Answerer::Reflect if events::reflect(self.parts().vmcb, code) => {}
                _ => break code,
            }
        };
        // SAFETY: the guest's registers go to its VMCB, and `Cpu::init` saved the host's to `cpu.host`; IF is as it
        // was on entry to this function.
        unsafe { leave(vmcb, cpu.host) };
        if code == code::INVALID {
            self.contain_failed_entry();
        }
        let Parts { vmcb, extra, .. } = self.parts();
        exits::after(code, vmcb, extra, cpu.features.limits.virq_reported_as_exception);
        match exits::answerer(code) {
            Answerer::Interrupt => Left::Interrupt,
            _ => Left::Exit(code),
        }
    }

    /// Answers CPUID from the table, unless the vmm wants to.
    #[inline]
    fn answer_cpuid(&mut self) -> bool {
        let Parts { vmcb, mut page, cpuid, .. } = self.parts();
        let answer = cpuid.look_up(vmcb.save.rax as u32, page.get(gpr(1)) as u32, vmcb.save.cr4);
        let Answer::Registers([eax, ebx, ecx, edx]) = answer else { return false };
        vmcb.save.rax = eax.into();
        page.set(gpr(3), ebx.into());
        page.set(gpr(1), ecx.into());
        page.set(gpr(2), edx.into());
        exits::advance(vmcb, exits::CPUID_LENGTH);
        true
    }

    /// QEMU stores the host's registers over the guest's when VMRUN refuses a VMCB; the vmm must not see them. It
    /// gives the same code for a guest's write of a reserved bit to CR3 or CR4, which is no failure of the entry.
    fn contain_failed_entry(&mut self) {
        let vmcb = self.parts().vmcb;
        if vmcb.save.cr3 == read_cr3() {
            vmcb.save.zero();
            vmcb.save.efer = SVME;
        }
    }
}

/// Enters the guest and comes back at its next exit: 35 instructions.
///
/// # Safety
/// `state` is the vCPU's state page, whose first 16 words are its general-purpose registers; `vmcb` its VMCB, with
/// reset state or what the CPU left there, and checked changes. GIF is 0 and VMLOAD was executed.
#[inline(always)]
unsafe fn switch(state: *mut u64, vmcb: Spa) {
    // SAFETY: VMRUN restores rip, rsp, rax, rflags, the segments, the control registers and the IDT (section 15.6);
    // rbx and rbp are restored here, every other register is declared to be lost. The guest reaches no memory of the
    // host's but what its nested tables map.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rdi",
            "mov rcx, [rdi + 0x08]",
            "mov rdx, [rdi + 0x10]",
            "mov rbx, [rdi + 0x18]",
            "mov rbp, [rdi + 0x28]",
            "mov rsi, [rdi + 0x30]",
            "mov r8, [rdi + 0x40]",
            "mov r9, [rdi + 0x48]",
            "mov r10, [rdi + 0x50]",
            "mov r11, [rdi + 0x58]",
            "mov r12, [rdi + 0x60]",
            "mov r13, [rdi + 0x68]",
            "mov r14, [rdi + 0x70]",
            "mov r15, [rdi + 0x78]",
            "mov rdi, [rdi + 0x38]",
            "vmrun rax",
            "pop rax",
            "mov [rax + 0x08], rcx",
            "mov [rax + 0x10], rdx",
            "mov [rax + 0x18], rbx",
            "mov [rax + 0x28], rbp",
            "mov [rax + 0x30], rsi",
            "mov [rax + 0x38], rdi",
            "mov [rax + 0x40], r8",
            "mov [rax + 0x48], r9",
            "mov [rax + 0x50], r10",
            "mov [rax + 0x58], r11",
            "mov [rax + 0x60], r12",
            "mov [rax + 0x68], r13",
            "mov [rax + 0x70], r14",
            "mov [rax + 0x78], r15",
            "pop rbp",
            "pop rbx",
            inout("rax") vmcb.0 => _,
            inout("rdi") state => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

/// Gives the CPU back to the host.
///
/// # Safety
/// `vmcb` is the VMCB of the guest that was left; `host` has what VMSAVE saved of the host on this CPU.
#[inline(always)]
unsafe fn leave(vmcb: Spa, host: Spa) {
    // SAFETY: the caller's. Interrupts are off again before GIF is 1.
    unsafe {
        asm!(
            "vmsave rax",
            "mov rax, {host}",
            "vmload rax",
            "cli",
            "stgi",
            host = in(reg) host.0,
            inout("rax") vmcb.0 => _,
            options(nostack),
        );
    }
}
