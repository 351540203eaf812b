//! The system-call path: SYSCALL stores the registers of [`caisson_proto::abi`] in this CPU's frame and calls the
//! kernel; SYSRET loads the frame again, which may be another service's by then.

use caisson_core::cpu::UserFrame;

use crate::layout::{PERCPU, STACK_TOP};
use crate::percpu::{PerCpu, this};
use crate::traps::Hooks;

/// RFLAGS in ring 3: interrupts on, all else clear.
const USER_FLAGS: u64 = 1 << 9 | 1 << 1;
/// Flags that SYSCALL clears: all that can be.
pub(crate) const FLAGS_CLEARED: u64 = 0x3f_7fd5;

const FRAME: u64 = PERCPU + core::mem::offset_of!(PerCpu, frame) as u64;
const RAX: usize = core::mem::offset_of!(UserFrame, rax);
const WORDS: usize = core::mem::offset_of!(UserFrame, words);
const RBX: usize = core::mem::offset_of!(UserFrame, rbx);
const RIP: usize = core::mem::offset_of!(UserFrame, rip);
const RSP: usize = core::mem::offset_of!(UserFrame, rsp);

unsafe extern "C" {
    /// Entered by SYSCALL.
    fn caisson_syscall();
    /// Loads the frame and leaves by SYSRET. The stack is forgotten.
    pub(crate) fn caisson_leave() -> !;
}

// 16 instructions in, 19 out. rip is cut to the 39 bits of the user half before SYSRET: the frame may come from a
// manifest's entry point. r11, rbp, r14 and r15 carry nothing from the kernel.
core::arch::global_asm!(
    r#"
    .section .text.syscall, "ax", @progbits
    .balign 64
    .global caisson_syscall
caisson_syscall:
    mov [{frame} + {rsp}], rsp
    mov rsp, {stack}
    mov [{frame} + {rax}], rax
    mov [{frame} + {words}], rdi
    mov [{frame} + {words} + 8], rsi
    mov [{frame} + {words} + 16], rdx
    mov [{frame} + {words} + 24], r10
    mov [{frame} + {words} + 32], r8
    mov [{frame} + {words} + 40], r9
    mov [{frame} + {words} + 48], r12
    mov [{frame} + {words} + 56], r13
    mov [{frame} + {rbx}], rbx
    mov [{frame} + {rip}], rcx
    mov rdi, {frame}
    call [{hook}]
    .global caisson_leave
caisson_leave:
    mov rcx, [{frame} + {rip}]
    shl rcx, 25
    shr rcx, 25
    mov rax, [{frame} + {rax}]
    mov rdi, [{frame} + {words}]
    mov rsi, [{frame} + {words} + 8]
    mov rdx, [{frame} + {words} + 16]
    mov r10, [{frame} + {words} + 24]
    mov r8, [{frame} + {words} + 32]
    mov r9, [{frame} + {words} + 40]
    mov r12, [{frame} + {words} + 48]
    mov r13, [{frame} + {words} + 56]
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
    hook = const (PERCPU as usize + core::mem::offset_of!(PerCpu, hooks) + Hooks::SYSCALL) as i64,
    rax = const RAX,
    words = const WORDS,
    rbx = const RBX,
    rip = const RIP,
    rsp = const RSP,
    flags = const USER_FLAGS,
);

/// Where SYSCALL goes.
pub(crate) fn entry() -> u64 {
    caisson_syscall as *const () as u64
}

/// Enters ring 3 with `frame` and forgets the stack. The kernel is entered again by a trap only.
pub fn enter_user(frame: &UserFrame) -> ! {
    // SAFETY: the frame is this CPU's, and no reference to it is alive but those of callers that never run again.
    // Ring 3 sees only what its own space maps.
    unsafe {
        this().frame.get().write(*frame);
        caisson_leave()
    }
}
