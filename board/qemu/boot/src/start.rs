//! From PVH's 32-bit entry to long mode and the kernel's main function.

use caisson_core::boot::{BootInfo, Range};
use caisson_proto::addr::Spa;

use crate::{info::machine, info::usable, pvh::MAGIC, pvh::MapEntry, pvh::StartInfo};

unsafe extern "Rust" {
    /// Made by [`entry!`](crate::entry), which checks its type.
    safe fn caisson_kernel_main(boot: &BootInfo) -> !;
}

// PVH (Xen's public/elfnote.h): note type 18, XEN_ELFNOTE_PHYS32_ENTRY, has the physical entry point. The boot
// tables map the first 512 GiB by pages of 1 GiB: at their own addresses, at the kernel's FRAMES_MAP, and the first two
// also at KERNEL_BASE. Long mode: APM volume 2, section 14.6; the kernel loads segments before it needs them.
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
    .fill 255, 8, 0
    .quad boot_low - BASE + 3
    .fill 254, 8, 0
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
boot_gdtr:
    .word 15
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
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
    mov eax, offset boot_gdtr - BASE
    lgdt [eax]
    .byte 0xea
    .long boot_long - BASE
    .word 8
    .code64
boot_long:
    mov rsp, offset boot_stack
    mov edi, edi
    mov rax, offset {start}
    call rax
1:
    hlt
    jmp 1b
"#,
    start = sym start,
);

/// Virtual minus physical address of the image, as in kernel.ld.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// fw_cfg: selector port (the data port follows), and the key of the number of CPUs (QEMU's docs/specs/fw_cfg).
const FW_CFG: u16 = 0x510;
const FW_CFG_CPUS: u16 = 5;
/// The command line with which CPUs are taken to have WBNOINVD.
const WBNOINVD: [u8; 9] = *b"wbnoinvd\0";

unsafe extern "C" {
    static __kernel_start: u8;
    static __kernel_end: u8;
}

/// A copy of what lies at a physical address.
///
/// # Safety
/// A `T` lies at `address`, below 512 GiB.
unsafe fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the boot tables map it at its own address; the rest is as the caller says.
    unsafe { (address as *const T).read_unaligned() }
}

fn cpu_count() -> u16 {
    let cpus;
    // SAFETY: these ports are fw_cfg's on every machine that QEMU starts by PVH; reading it changes no memory.
    unsafe {
        core::arch::asm!("out dx, ax", "inc edx", "in al, dx", "mov ah, al", "in al, dx", "xchg al, ah",
            inout("dx") FW_CFG => _, inout("ax") FW_CFG_CPUS => cpus, options(nomem, nostack));
    }
    cpus
}

/// The machine, or `None` if `start_info` isn't PVH's.
///
/// # Safety
/// `start_info` is what PVH passed in ebx, and nothing that it points to has been overwritten.
unsafe fn boot_info(start_info: u64) -> Option<BootInfo> {
    // SAFETY: PVH passes the address of its start info, and that says where so many map entries, a module's entry and
    // a text lie. What lies behind the zero at its end is memory, too.
    unsafe {
        let start: StartInfo = read(start_info);
        if start.magic != MAGIC || start.version == 0 {
            return None;
        }
        let entries = (0..u64::from(start.memory_map_entries))
            .map(|index| read::<MapEntry>(start.memory_map + index * size_of::<MapEntry>() as u64));
        let bundle = if start.modules != 0 { read(start.module_list) } else { [0; 2] };
        let first = &raw const __kernel_start as u64 - KERNEL_BASE;
        let kernel = [first, &raw const __kernel_end as u64 - KERNEL_BASE - first];
        let [kernel, bundle] = [kernel, bundle].map(|[start, bytes]| Range { start: Spa(start), bytes });
        let assume_wbnoinvd = start.command_line != 0 && read::<[u8; 9]>(start.command_line) == WBNOINVD;
        Some(machine(usable(entries), kernel, bundle, cpu_count().into(), assume_wbnoinvd))
    }
}

/// The first Rust code, on the boot stack. It comes back if there is nobody to tell what is wrong.
extern "C" fn start(start_info: u64) {
    // SAFETY: `start_info` is PVH's, and only the image's own memory has been written since.
    if let Some(boot) = unsafe { boot_info(start_info) } {
        caisson_kernel_main(&boot)
    }
}
