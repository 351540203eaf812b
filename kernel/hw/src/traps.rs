//! Exceptions and interrupts.
//!
//! Every vector has a stub that stores all registers in a [`Trap`] and calls [`dispatch`]. APM volume 2, chapter 8.

use crate::prelude::*;

/// Vectors of interrupts, and of exceptions that are more than a fault of ring 3's.
pub mod vector {
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Double fault.
    pub const DOUBLE_FAULT: u8 = 8;
    /// Machine check.
    pub const MACHINE_CHECK: u8 = 18;
    /// ISA interrupt line 0; line n is this + n.
    pub const LINE_0: u8 = 0x20;
    /// This CPU's timer.
    pub const TIMER: u8 = 0xf0;
    /// Another CPU wants this one to look for work, or caches or translations flushed here.
    pub const RESCHEDULE: u8 = 0xf1;
    /// The local APIC's spurious vector.
    pub const SPURIOUS: u8 = 0xff;
}

const PAGE_FAULT: u64 = 14;

/// The registers at an exception or interrupt.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Trap {
    /// r15 to r8, rbp rdi rsi rdx rcx rbx.
    pub registers: [u64; 14],
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
        if self.vector == PAGE_FAULT { Cr2::read_raw() } else { 0 }
    }
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
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    push \register
    .endr
    cld
    clac
    mov rdi, rsp
    call {dispatch}
    test al, al
    jnz caisson_leave
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
    pop \register
    .endr
    add rsp, 16
    iretq
"#,
    dispatch = sym dispatch,
);

/// What every stub calls. `true`: ring 3 goes on with this CPU's frame and not where it was.
extern "C" fn dispatch(trap: &mut Trap) -> bool {
    // SAFETY: used only if ring 3 was running, and then nobody else uses the frame.
    let frame = || unsafe { &mut *this().frame.get() };
    match trap.vector as u8 {
        vector::NMI | vector::SPURIOUS => false,
        vector::DOUBLE_FAULT | vector::MACHINE_CHECK => epitaph::epitaph(trap),
        0..=31 if trap.is_user() => {
            run::fault(trap, frame());
            true
        }
        0..=31 => epitaph::epitaph(trap),
        number => {
            if number == vector::TIMER {
                this().timer.set(NEVER);
            }
            apic::acknowledge();
            if trap.is_user() {
                return run::interrupt(number, Some(trap), frame());
            }
            run::interrupt(number, None, &mut UserFrame::default());
            false
        }
    }
}

/// Fills the interrupt descriptor table (APM volume 2, section 4.8.4): interrupt gates, for ring 0 only.
pub(crate) fn fill_idt(table: Frame) {
    for number in 0..=255 {
        let stub = &raw const caisson_stubs as u64 + u64::from(number) * STUB_BYTES;
        let stack = IST.iter().position(|vector| *vector == number).map_or(0, |at| at as u64 + 1);
        let place = stub & 0xffff | (stub >> 16 & 0xffff) << 48;
        let gate = place | u64::from(KERNEL_CODE) << 16 | stack << 32 | 0x8e << 40;
        Mapped.write(table, 2 * usize::from(number), gate);
        Mapped.write(table, 2 * usize::from(number) + 1, stub >> 32);
    }
}
