//! The system-call path: SYSCALL stores the registers of [`caisson_proto::abi`] in this CPU's frame and calls the
//! kernel; SYSRET loads the frame again, which may be another service's by then.

use crate::prelude::*;

/// RFLAGS in ring 3: interrupts on, all else clear.
const USER_FLAGS: u64 = 1 << 9 | 1 << 1;
/// Flags that SYSCALL clears: all that can be.
pub(crate) const FLAGS_CLEARED: u64 = 0x3f_7fd5;

const FRAME: u64 = PERCPU + offset_of!(PerCpu, frame) as u64;

unsafe extern "C" {
    /// Entered by SYSCALL.
    pub(crate) fn caisson_syscall();
    /// Loads the frame and leaves by SYSRET. The stack is forgotten.
    fn caisson_leave() -> !;
}

// 14 instructions in, 17 out. rip is in the user half, as SYSRET demands: it is where ring 3 was, or an entry point that
// was cut to it. r11, rbp, r14 and r15 carry nothing from the kernel.
core::arch::global_asm!(
    r#"
    .section .text.syscall, "ax", @progbits
    .balign 64
    .global caisson_syscall
caisson_syscall:
    mov [{frame} + {rsp}], rsp
    mov rsp, {stack}
    mov [{frame} + {rax}], rax
    .set at, {words}
    .irp register, rdi, rsi, rdx, r10, r8, r9, r12, r13
    mov [{frame} + at], \register
    .set at, at + 8
    .endr
    mov [{frame} + {rbx}], rbx
    mov [{frame} + {rip}], rcx
    call {syscall}
    .global caisson_leave
caisson_leave:
    mov rcx, [{frame} + {rip}]
    mov rax, [{frame} + {rax}]
    .set at, {words}
    .irp register, rdi, rsi, rdx, r10, r8, r9, r12, r13
    mov \register, [{frame} + at]
    .set at, at + 8
    .endr
    mov rbx, [{frame} + {rbx}]
    xor ebp, ebp
    xor r14d, r14d
    xor r15d, r15d
    mov r11d, {flags}
    mov rsp, [{frame} + {rsp}]
    sysretq
"#,
    frame = const FRAME as i64,
    stack = const STACK_TOP as i64,
    syscall = sym run::syscall,
    rax = const offset_of!(UserFrame, rax),
    words = const offset_of!(UserFrame, words),
    rbx = const offset_of!(UserFrame, rbx),
    rip = const offset_of!(UserFrame, rip),
    rsp = const offset_of!(UserFrame, rsp),
    flags = const USER_FLAGS,
);

/// Enters ring 3 with this CPU's frame and forgets the stack. The kernel is entered again by a trap only.
#[inline(always)]
pub(crate) fn leave() -> ! {
    // SAFETY: whoever calls this is never run again, nor are its callers. Ring 3 sees only what its own space maps.
    unsafe { caisson_leave() }
}
