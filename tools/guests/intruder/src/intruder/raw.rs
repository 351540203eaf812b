//! What no service's runtime offers: any address, any instruction, any register at a system call.

use core::arch::asm;
use core::cell::UnsafeCell;

use caisson_guest_intruder::instructions::{INSTRUCTIONS, STRIDE};
use caisson_proto::addr::PAGE_SIZE;
use caisson_proto::wire::Words;

/// A page of its own that instructions may spoil, and that is lent.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: a service has one thread.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; 512]));

unsafe extern "C" {
    static caisson_intruder_code: u8;
    static __image_end: u8;
}

/// The number of the page of its own.
pub fn page() -> u64 {
    PAGE.0.get() as u64 / PAGE_SIZE
}

/// Just above its image.
pub fn image_end() -> u64 {
    &raw const __image_end as u64
}

/// Reads a byte. Ends the service where nothing is mapped for it.
pub fn read(at: u64) -> u8 {
    let value;
    // SAFETY: a byte is read from wherever; if there is one, nothing becomes of it.
    unsafe { asm!("mov {0}, byte ptr [{1}]", out(reg_byte) value, in(reg) at, options(nostack, preserves_flags)) };
    value
}

/// Writes a byte. Ends the service where it may not.
pub fn write(at: u64, value: u8) {
    // SAFETY: of its own memory, only the page above and ring pages are named, to which there are no references. What
    // else it could hit is what the test is about.
    unsafe { asm!("mov byte ptr [{0}], {1}", in(reg) at, in(reg_byte) value, options(nostack, preserves_flags)) };
}

/// Reads a word of a ring's page.
pub fn read_word(at: u64) -> u64 {
    let value;
    // SAFETY: as in `read`.
    unsafe { asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags)) };
    value
}

/// Writes a word to a ring's page.
pub fn write_word(at: u64, value: u64) {
    // SAFETY: as in `write`.
    unsafe { asm!("mov qword ptr [{0}], {1}", in(reg) at, in(reg) value, options(nostack, preserves_flags)) };
}

/// Jumps there.
pub fn execute(at: u64) {
    // SAFETY: nothing that it may execute lies where it is sent to; if it comes back, that is told as a failure.
    unsafe { asm!("call {0}", in(reg) at, clobber_abi("C")) };
}

/// Executes an instruction of the list with these registers.
pub fn instruction(index: usize, [rax, rcx, rdx]: [u64; 3]) {
    let code = &raw const caisson_intruder_code as u64 + index.min(INSTRUCTIONS.len()) as u64 * STRIDE;
    // SAFETY: the code is one instruction and a return. It faults; if it doesn't, that is told as a failure.
    unsafe {
        asm!("push rbx", "call {code}", "pop rbx", code = in(reg) code, in("rax") rax, in("rcx") rcx, in("rdx") rdx,
            in("rdi") PAGE.0.get(), in("rsi") PAGE.0.get(), clobber_abi("C"));
    }
}

/// Reads a port, of 1, 2 or 4 bytes.
pub fn port_in(port: u16, bytes: u8) {
    // SAFETY: no port is this service's, so it faults.
    unsafe {
        match bytes {
            1 => asm!("in al, dx", in("dx") port, out("al") _, options(nostack)),
            2 => asm!("in ax, dx", in("dx") port, out("ax") _, options(nostack)),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _, options(nostack)),
        }
    }
}

/// Writes a port, of 1, 2 or 4 bytes.
pub fn port_out(port: u16, bytes: u8) {
    // SAFETY: as in `port_in`.
    unsafe {
        match bytes {
            1 => asm!("out dx, al", in("dx") port, in("al") 0u8, options(nostack)),
            2 => asm!("out dx, ax", in("dx") port, in("ax") 0u16, options(nostack)),
            _ => asm!("out dx, eax", in("dx") port, in("eax") 0u32, options(nostack)),
        }
    }
}

/// A system call; what rax and the words were after it.
pub fn system_call(rax: u64, lease: u64, words: &Words) -> (u64, Words) {
    let mut words = *words;
    let [w0, w1, w2, w3, w4, w5, w6, w7] = &mut words;
    let mut rax = rax;
    // SAFETY: as in the services' runtime: the kernel changes the registers of the calling convention and no memory.
    unsafe {
        asm!(
            "push rbx", "push rbp", "mov rbx, rcx", "syscall", "pop rbp", "pop rbx",
            inout("rax") rax, inout("rcx") lease => _,
            inout("rdi") *w0, inout("rsi") *w1, inout("rdx") *w2, inout("r10") *w3,
            inout("r8") *w4, inout("r9") *w5, inout("r12") *w6, inout("r13") *w7,
            out("r11") _, out("r14") _, out("r15") _,
        );
    }
    (rax, words)
}

/// A null system call with this stack pointer, after a loop with it until a time. What rax and the stack pointer were
/// after it.
pub fn null_with_stack(stack: u64, until: u64) -> (u64, u64) {
    let (mut rax, mut after) = (0, stack);
    // SAFETY: nothing uses the stack until the pointer is back: interrupts have a stack of the kernel's.
    unsafe {
        asm!(
            "push rbx", "push rbp", "mov rdi, rsp", "mov rsp, rsi",
            "2:", "rdtsc", "shl rdx, 32", "or rax, rdx", "cmp rax, r8", "jb 2b",
            "mov eax, 3", "syscall",
            "mov rsi, rsp", "mov rsp, rdi", "pop rbp", "pop rbx",
            inout("rax") rax, inout("rsi") after, in("r8") until, out("rdi") _, out("rdx") _,
            out("rcx") _, out("r11") _, out("r14") _, out("r15") _,
        );
    }
    (rax, after)
}

/// A null system call with these flags set, after a loop with them, but for single steps, until a time. What rax and the
/// flags were after it.
pub fn null_with_flags(flags: u64, until: u64) -> (u64, u64) {
    const TF: u64 = 1 << 8;
    let (mut rax, mut after) = (0, flags);
    // SAFETY: the flags that matter to Rust are as the kernel leaves them, which is clear.
    unsafe {
        asm!(
            "push rbx", "push rbp",
            "2:", "pushfq", "or [rsp], rdi", "popfq",
            "rdtsc", "mov ecx, edx", "mov ebx, eax", "mov rdx, rcx", "shl rdx, 32", "or rdx, rbx",
            "cmp rdx, r8", "jb 2b",
            "mov eax, 3", "pushfq", "or [rsp], rsi", "popfq", "syscall",
            "pushfq", "pop rsi", "cld", "pop rbp", "pop rbx",
            inout("rax") rax, inout("rsi") after, inout("rdi") flags & !TF => _, in("r8") until, out("rdx") _,
            out("rcx") _, out("r11") _, out("r14") _, out("r15") _,
        );
    }
    (rax, after)
}
