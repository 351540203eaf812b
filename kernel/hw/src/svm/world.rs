//! The world switch (APM volume 2, sections 15.5 and 15.6).
//!
//! From CLGI to STGI nothing can interrupt: the guest's FS, GS, TR and system-call registers are in the CPU while the
//! kernel answers an exit by itself, so that such an answer costs neither VMSAVE nor VMLOAD. Rust code runs there; it
//! uses none of these registers, and the IDT is the host's since the exit.
//!
//! STI behind CLGI lets the guest be left for physical interrupts: with V_INTR_MASKING, it is the host's IF at VMRUN
//! that masks them.

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use caisson_core::svm::cpuid::Answer;
use caisson_core::svm::events;
use caisson_core::svm::exits::{self, Answerer};
use caisson_core::svm::state::{SVME, StatePage, gpr};
use caisson_core::svm::vmcb::Vmcb;
use caisson_proto::addr::Spa;
use caisson_proto::vcpu::code;
use zerocopy::FromZeros;

use super::cpu::Cpu;
use super::instructions::read_cr3;
use super::resident;
use super::vcpu::{Parts, VMCB, Vcpu};

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
        let Parts { vmcb, extra, .. } = self.parts();
        exits::before(vmcb, extra);
        if extra.reload != 0 {
            resident::reload(&mut self.registers(cpu));
        }
        let (base, vmcb) = (self.base(), self.vmcb_spa());
        // SAFETY: the VMCB's FS, GS, TR, LDTR and system-call registers are the guest's; the kernel uses none of
        // them until `leave`, and GIF = 0 keeps away what would.
        unsafe { asm!("clgi", "sti", "vmload rax", in("rax") vmcb.0, options(nostack)) };
        let code = loop {
            // SAFETY: the frames of `self` are the vCPU's own, mapped and set up; `Cpu::init` ran here, or there
            // would be no `Cpu`.
            unsafe { switch(base, vmcb) };
            let vmcb = self.parts().vmcb;
            let code = exits::narrow(vmcb.control.exit_code);
            if exits::answerer(code) != Answerer::Reflect || !events::reflect(vmcb, code) {
                break code;
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

    /// QEMU stores the host's registers over the guest's when VMRUN refuses a VMCB; the vmm must not see them. It
    /// gives the same code for a guest's write of a reserved bit to CR3 or CR4, which is no failure of the entry.
    #[cold]
    fn contain_failed_entry(&mut self) {
        let vmcb = self.parts().vmcb;
        if vmcb.save.cr3 == read_cr3() {
            vmcb.save.zero();
            vmcb.save.efer = SVME;
        }
    }
}

/// Answers CPUID from the table; false if the vmm wants to.
///
/// # Safety
/// `base` is that of a vCPU's frames, to whose parts there is no reference.
unsafe extern "C" fn answer_cpuid(base: *mut u8) -> bool {
    // SAFETY: the caller's.
    let Parts { vmcb, mut page, cpuid, .. } = unsafe { Parts::at(base) };
    let answer = cpuid.look_up(vmcb.save.rax as u32, page.get(gpr(1)) as u32, vmcb.save.cr4);
    let Answer::Registers([eax, ebx, ecx, edx]) = answer else { return false };
    vmcb.save.rax = eax.into();
    page.set(gpr(3), ebx.into());
    page.set(gpr(1), ecx.into());
    page.set(gpr(2), edx.into());
    exits::advance(vmcb, exits::CPUID_LENGTH);
    true
}

/// Enters the guest and comes back at the next exit that [`answer_cpuid`] doesn't answer.
///
/// Registers that the C ABI preserves stay the guest's while CPUID is answered, but for rbx, which is part of the
/// answer. rax and rsp are in the VMCB.
///
/// # Safety
/// `base` is that of a vCPU's frames: first the state page, whose first 16 words are its general-purpose registers,
/// then the VMCB, with reset state or what the CPU left there, and checked changes. `vmcb` is the latter's physical
/// address. GIF is 0 and VMLOAD was executed. Nothing refers to the frames.
///
/// VMRUN restores rip, rsp, rax, rflags, the segments, the control registers and the IDT (section 15.6); the others
/// are restored here or the caller's to lose. The guest reaches no memory of the host's but what its nested tables
/// map.
#[unsafe(naked)]
unsafe extern "C" fn switch(base: *mut u8, vmcb: Spa) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8", // keeps the stack aligned at the call
        "push rsi",
        "push rdi",
        "mov rax, rsi",
        "mov rbp, [rdi + 0x28]",
        "mov r12, [rdi + 0x60]",
        "mov r13, [rdi + 0x68]",
        "mov r14, [rdi + 0x70]",
        "mov r15, [rdi + 0x78]",
        "2:",
        "mov rcx, [rdi + 0x08]",
        "mov rdx, [rdi + 0x10]",
        "mov rbx, [rdi + 0x18]",
        "mov rsi, [rdi + 0x30]",
        "mov r8, [rdi + 0x40]",
        "mov r9, [rdi + 0x48]",
        "mov r10, [rdi + 0x50]",
        "mov r11, [rdi + 0x58]",
        "mov rdi, [rdi + 0x38]",
        "vmrun rax",
        "mov rax, [rsp]",
        "mov [rax + 0x08], rcx",
        "mov [rax + 0x10], rdx",
        "mov [rax + 0x18], rbx",
        "mov [rax + 0x30], rsi",
        "mov [rax + 0x38], rdi",
        "mov [rax + 0x40], r8",
        "mov [rax + 0x48], r9",
        "mov [rax + 0x50], r10",
        "mov [rax + 0x58], r11",
        "mov rdi, rax",
        "cmp qword ptr [rax + {exit_code}], {cpuid}",
        "jne 3f",
        "call {answer}",
        "mov rdi, [rsp]",
        "test al, al",
        "mov rax, [rsp + 8]",
        "jnz 2b",
        "3:",
        "mov [rdi + 0x28], rbp",
        "mov [rdi + 0x60], r12",
        "mov [rdi + 0x68], r13",
        "mov [rdi + 0x70], r14",
        "mov [rdi + 0x78], r15",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        exit_code = const VMCB + offset_of!(Vmcb, control.exit_code),
        cpuid = const code::CPUID,
        answer = sym answer_cpuid,
    );
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
