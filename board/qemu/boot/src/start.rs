//! From PVH's 32-bit entry to long mode and the kernel's main function.

use caisson_core::boot::BootInfo;

use crate::info::boot_info;

unsafe extern "Rust" {
    /// Made by [`entry!`](crate::entry), which checks its type.
    safe fn caisson_kernel_main(boot: &BootInfo) -> !;
}

// PVH (Xen's public/elfnote.h): note type 18, XEN_ELFNOTE_PHYS32_ENTRY, has the physical entry point. The boot
// tables map the first 512 GiB twice over by pages of 1 GiB: at their own addresses, and the first two also at
// KERNEL_BASE. Long mode: APM volume 2, section 14.6.
core::arch::global_asm!(
    r#"
    .set BASE, 0xffffffff80000000

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .balign 4
    .quad caisson_pvh_start - BASE

    .section .data.boot, "aw", @progbits
    .balign 4096
boot_pml4:
    .quad boot_low - BASE + 3
    .fill 510, 8, 0
    .quad boot_high - BASE + 3
boot_low:
    .set page, 0
    .rept 512
    .quad (page << 30) + 0x83
    .set page, page + 1
    .endr
boot_high:
    .fill 510, 8, 0
    .quad 0x83
    .quad 0x40000083
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdtr:
    .word 23
    .long boot_gdt - BASE

    .section .bss.boot, "aw", @nobits
    .balign 16
    .skip 65536
boot_stack:

    .section .text.boot, "ax", @progbits
    .code32
    .global caisson_pvh_start
caisson_pvh_start:
    cli
    cld
    mov edi, ebx
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset boot_pml4 - BASE
    mov cr3, eax
    mov esp, offset boot_stack - BASE
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
    mov eax, offset boot_gdtr - BASE
    lgdt [eax]
    push 8
    mov eax, offset boot_long - BASE
    push eax
    retf
    .code64
boot_long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset boot_stack
    xor ebp, ebp
    mov edi, edi
    mov rax, offset {start}
    call rax
    ud2
"#,
    start = sym start,
);

/// The first Rust code, on the boot stack.
extern "C" fn start(start_info: u64) -> ! {
    // SAFETY: the boot tables map the first 512 GiB, and `start_info` is PVH's.
    match unsafe { boot_info(start_info) } {
        Some(boot) => caisson_kernel_main(&boot),
        None => loop {
            // SAFETY: stops this CPU for good; there is nobody to tell.
            unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
        },
    }
}
