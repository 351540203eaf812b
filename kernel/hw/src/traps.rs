//! Exceptions and interrupts, and the kernel's handlers for them and for system calls.
//!
//! Every vector has a stub that stores all registers in a [`Trap`] and calls [`dispatch`]. APM volume 2, chapter 8.

use core::cell::UnsafeCell;

use caisson_core::cpu::UserFrame;
use caisson_proto::addr::PAGE_SIZE;

use crate::percpu::this;
use crate::segments::{IST_DOUBLE_FAULT, IST_MACHINE_CHECK, IST_NMI, KERNEL_CODE};
use crate::{apic, cpu, user};

/// Interrupt vectors.
pub mod vector {
    /// ISA interrupt line 0; line n is this + n.
    pub const LINE_0: u8 = 0x20;
    /// This CPU's timer.
    pub const TIMER: u8 = 0xf0;
    /// Another CPU wants this one to look for work.
    pub const RESCHEDULE: u8 = 0xf1;
    /// Another CPU wants caches or translations flushed here.
    pub const FLUSH: u8 = 0xf2;
    /// The local APIC's spurious vector.
    pub const SPURIOUS: u8 = 0xff;
}

const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const PAGE_FAULT: u64 = 14;
const MACHINE_CHECK: u64 = 18;

/// The registers at an exception or interrupt.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)] // registers
pub struct Trap {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Trap {
    /// Whether ring 3 was interrupted.
    pub fn is_user(&self) -> bool {
        self.cs & 3 == 3
    }

    /// The address of a page fault, 0 for another exception. Before the next fault only.
    pub fn address(&self) -> u64 {
        if self.vector == PAGE_FAULT { cpu::fault_address() } else { 0 }
    }
}

/// The kernel above this layer. Everything is called with interrupts off.
pub trait Kernel: 'static {
    /// A system call. On return the frame says what ring 3 goes on with, perhaps another service.
    fn syscall(frame: &mut UserFrame);
    /// An interrupt: from ring 3 (`user` is there), in [`cpu::idle`] or in [`cpu::poll_interrupts`]. It has been
    /// acknowledged. `false` if what ring 3 did is to be abandoned; then ring 3 goes on with `next`. In ring 0
    /// neither the result nor `next` counts.
    fn interrupt(vector: u8, user: Option<&Trap>, next: &mut UserFrame) -> bool;
    /// An exception in ring 3. `next` says what ring 3 goes on with.
    fn fault(trap: &Trap, next: &mut UserFrame);
    /// An exception in the kernel, or a machine check.
    fn kernel_fault(trap: &Trap) -> !;
}

/// A [`Kernel`] as functions.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Hooks {
    syscall: extern "C" fn(&mut UserFrame),
    interrupt: fn(u8, Option<&Trap>, &mut UserFrame) -> bool,
    fault: fn(&Trap, &mut UserFrame),
    kernel_fault: fn(&Trap) -> !,
}

extern "C" fn syscall_of<K: Kernel>(frame: &mut UserFrame) {
    K::syscall(frame);
}

impl Hooks {
    /// Offset of the system-call handler.
    pub(crate) const SYSCALL: usize = core::mem::offset_of!(Self, syscall);
    /// Before the kernel installed its own.
    pub(crate) const NONE: Self = Self::of::<NoKernel>();

    const fn of<K: Kernel>() -> Self {
        Self { syscall: syscall_of::<K>, interrupt: K::interrupt, fault: K::fault, kernel_fault: K::kernel_fault }
    }
}

struct NoKernel;

impl Kernel for NoKernel {
    fn syscall(_: &mut UserFrame) {
        cpu::halt()
    }
    fn interrupt(_: u8, _: Option<&Trap>, _: &mut UserFrame) -> bool {
        true
    }
    fn fault(_: &Trap, _: &mut UserFrame) {
        cpu::halt()
    }
    fn kernel_fault(trap: &Trap) -> ! {
        crate::power::early_epitaph(trap)
    }
}

/// Makes `K` the kernel of this CPU.
pub fn install<K: Kernel>() {
    this().hooks.set(Hooks::of::<K>());
}

unsafe extern "C" {
    /// The first of 256 stubs of [`STUB_BYTES`].
    static caisson_stubs: UnsafeCell<u8>;
}
const STUB_BYTES: u64 = 16;

// A gate leaves the direction and alignment flags as they were: a user's AC would lift SMAP.
core::arch::global_asm!(
    r#"
    .section .text.traps, "ax", @progbits
    .balign 64
    .global caisson_stubs
caisson_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    push 0
    .endif
    push vector
    jmp caisson_trap
    .set vector, vector + 1
    .endr
caisson_trap:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    clac
    mov rdi, rsp
    call {dispatch}
    test al, al
    jnz caisson_leave
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
"#,
    dispatch = sym dispatch,
);

/// What every stub calls. `true`: ring 3 goes on with this CPU's frame and not where it was.
extern "C" fn dispatch(trap: &mut Trap) -> bool {
    let hooks = this().hooks.get();
    match trap.vector {
        NMI => {
            this().nmis.set(this().nmis.get() + 1);
            false
        }
        DOUBLE_FAULT | MACHINE_CHECK => (hooks.kernel_fault)(trap),
        0..=31 if trap.is_user() => {
            // SAFETY: ring 3 was running, so nobody else uses the frame.
            (hooks.fault)(trap, unsafe { &mut *this().frame.get() });
            true
        }
        0..=31 => match user::fixup(trap) {
            Some(rip) => {
                trap.rip = rip;
                false
            }
            None => (hooks.kernel_fault)(trap),
        },
        number => interrupt(number as u8, trap, hooks),
    }
}

fn interrupt(number: u8, trap: &Trap, hooks: Hooks) -> bool {
    if number == vector::SPURIOUS {
        return false;
    }
    if number == vector::TIMER {
        this().timer.set(0);
    }
    apic::acknowledge();
    if trap.is_user() {
        // SAFETY: ring 3 was running, so nobody else uses the frame.
        !(hooks.interrupt)(number, Some(trap), unsafe { &mut *this().frame.get() })
    } else {
        (hooks.interrupt)(number, None, &mut UserFrame::default());
        false
    }
}

/// Fills the interrupt descriptor table (APM volume 2, section 4.8.4): interrupt gates, for ring 0 only.
///
/// # Safety
/// `at` is a page that nobody else uses.
pub(crate) unsafe fn write_idt(at: *mut [u64; 2]) {
    for number in 0..PAGE_SIZE / 16 {
        let stub = &raw const caisson_stubs as u64 + number * STUB_BYTES;
        let stack = match number {
            NMI => IST_NMI,
            DOUBLE_FAULT => IST_DOUBLE_FAULT,
            MACHINE_CHECK => IST_MACHINE_CHECK,
            _ => 0,
        };
        let low = stub & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | u64::from(stack) << 32
            | 0x8e << 40
            | (stub >> 16 & 0xffff) << 48;
        // SAFETY: as the caller says; 256 gates fill the page.
        unsafe { at.add(number as usize).write([low, stub >> 32]) };
    }
}
