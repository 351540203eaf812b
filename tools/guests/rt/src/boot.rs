//! From the Multiboot entry to long mode (Multiboot Specification 0.6.96, sections 3.1 and 3.2).

use core::arch::global_asm;
use core::ffi::CStr;
use core::panic::PanicInfo;

// Flag 16: the header itself says where the file lies, since loaders take no 64-bit ELF file otherwise. The tables
// map 4 GiB by 2 MiB pages: one table of level 4, one of level 3, four of level 2.
global_asm!(
    r#"
    .section .multiboot, "a", @progbits
    .balign 4
guest_header:
    .long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
    .long guest_header, guest_load, guest_load_end, guest_end, guest_start

    .section .text.start, "ax", @progbits
    .code32
    .global guest_start
guest_start:
    cli
    cld
    mov esp, offset guest_stack_top
    mov [guest_info], ebx
    mov eax, offset guest_level3 + 3
    mov [guest_level4], eax
    mov eax, offset guest_level2 + 3
    mov edi, offset guest_level3
    mov ecx, 4
2:  mov [edi], eax
    add eax, 0x1000
    add edi, 8
    loop 2b
    mov eax, 0x83
    mov edi, offset guest_level2
    mov ecx, 2048
3:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 3b
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset guest_level4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    lgdt [guest_gdt_pointer]
    push 8
    mov eax, offset guest_long
    push eax
    retf
    .code64
guest_long:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    xor ebp, ebp
    call guest_main
5:  hlt
    jmp 5b

    .section .data.start, "aw", @progbits
    .balign 8
guest_gdt:
    .quad 0, 0x00209b0000000000, 0x00cf93000000ffff
guest_gdt_pointer:
    .word 23
    .quad guest_gdt
    .balign 8
    .global guest_info
guest_info:
    .quad 0

    .section .bss.start, "aw", @nobits
    .balign 4096
guest_level4: .skip 4096
guest_level3: .skip 4096
guest_level2: .skip 4 * 4096
    .skip 32768
guest_stack_top:
"#
);

unsafe extern "C" {
    /// Where the Multiboot information lies, as the entry code stored it.
    static guest_info: u64;
}

/// Names the function that a guest starts with: `fn() -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// What the entry code calls.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            let main: fn() -> ! = $main;
            main()
        }
    };
}

/// The command line, the kernel's name before it; empty without one.
pub fn cmdline() -> &'static str {
    const HAS_CMDLINE: u32 = 1 << 2;
    // SAFETY: the entry code stored what the loader gave; all memory below 4 GiB is mapped, and nobody writes it.
    unsafe {
        let info = guest_info as *const u32;
        if info.is_null() || *info & HAS_CMDLINE == 0 {
            return "";
        }
        CStr::from_ptr(*info.add(4) as usize as *const _).to_str().unwrap_or("")
    }
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    crate::println!("guest panicked: {info}");
    crate::cpu::halt()
}
