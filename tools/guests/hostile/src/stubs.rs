//! The handlers of all vectors in each mode, and the ways between the modes. A handler notes what happened in the frame
//! and goes back to where the attempt was made from.
//!
//! The frame lies at b000: rax rbx rcx rdx rsi rdi rbp r8 to r15, rip cs rflags rsp ss, vector, error code, cr2, ds; what
//! must be restored from b100 on: rsp, cr0, cr3, cr4, pointers of the tables.

use core::arch::global_asm;

// The vector is a 32-bit push (16-bit in real mode). Whether the CPU pushed an error code too is seen by where the
// stack stands: in long mode every handler has IST 1, which begins at guest_ist_top.
global_asm!(
    r#"
    .macro hostile_stubs name, common, sixteen
    .balign 16
    .global \name
\name:
    .set hostile_vector, 0
    .rept 256
    .balign 16
    .byte 0x68
    .if \sixteen
    .word hostile_vector
    .byte 0xe9
    .word \common - . - 2
    .else
    .long hostile_vector
    .byte 0xe9
    .long \common - . - 4
    .endif
    .set hostile_vector, hostile_vector + 1
    .endr
    .endm

    .section .text.hostile, "ax", @progbits
    .code64
    hostile_stubs hostile_stubs64, hostile_common64, 0

hostile_common64:
    mov [0xb000], rax
    mov [0xb008], rbx
    mov [0xb010], rcx
    mov [0xb018], rdx
    mov [0xb020], rsi
    mov [0xb028], rdi
    mov [0xb030], rbp
    mov [0xb038], r8
    mov [0xb040], r9
    mov [0xb048], r10
    mov [0xb050], r11
    mov [0xb058], r12
    mov [0xb060], r13
    mov [0xb068], r14
    mov [0xb070], r15
    xor eax, eax
    mov ds, eax
    mov es, eax
    pop qword ptr [0xb0a0]
    mov rax, 0x100000000
    mov [0xb0a8], rax
    lea rax, [rip + hostile_ist_top - 40]
    cmp rsp, rax
    je 2f
    pop qword ptr [0xb0a8]
2:  pop qword ptr [0xb078]
    pop qword ptr [0xb080]
    pop qword ptr [0xb088]
    pop qword ptr [0xb090]
    pop qword ptr [0xb098]
    mov rax, cr2
    mov [0xb0b0], rax
    mov rax, [0xb118]
    mov cr4, rax
    mov rax, [0xb108]
    mov cr0, rax
    mov rax, [0xb110]
    mov rbx, cr3
    cmp rax, rbx
    je hostile_back64
    mov cr3, rax
    .global hostile_back64
hostile_back64:
    lgdt [0xb120]
    lidt [0xb130]
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, [0xb100]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .macro hostile_save
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    cli
    mov [0xb100], rsp
    .endm

    .global hostile_attempt64
hostile_attempt64:
    hostile_save
    mov ds, [0xb0b8]
    mov es, [0xb0b8]
    push qword ptr [0xb098]
    push qword ptr [0xb090]
    push qword ptr [0xb088]
    push qword ptr [0xb080]
    push qword ptr [0xb078]
    mov rax, [0xb000]
    mov rbx, [0xb008]
    mov rcx, [0xb010]
    mov rdx, [0xb018]
    mov rsi, [0xb020]
    mov rdi, [0xb028]
    mov rbp, [0xb030]
    mov r8, [0xb038]
    mov r9, [0xb040]
    mov r10, [0xb048]
    mov r11, [0xb050]
    mov r12, [0xb058]
    mov r13, [0xb060]
    mov r14, [0xb068]
    mov r15, [0xb070]
    iretq

    .global hostile_attempt32
hostile_attempt32:
    hostile_save
    push 0x18
    lea rax, [rip + hostile_to32]
    push rax
    retfq
    .global hostile_attempt16
hostile_attempt16:
    hostile_save
    push 0x18
    lea rax, [rip + hostile_to16]
    push rax
    retfq

    .code32
    .macro hostile_unpage
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset hostile_stack32_top
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    .endm

hostile_to32:
    hostile_unpage
    lidt [0xb140]
    test byte ptr [0xb080], 3
    jz 3f
    push dword ptr [0xb098]
    push dword ptr [0xb090]
    jmp 4f
3:  mov esp, [0xb090]
4:  push dword ptr [0xb088]
    push dword ptr [0xb080]
    push dword ptr [0xb078]
    mov eax, [0xb000]
    mov ebx, [0xb008]
    mov ecx, [0xb010]
    mov edx, [0xb018]
    mov esi, [0xb020]
    mov edi, [0xb028]
    mov ebp, [0xb030]
    mov es, [0xb0b8]
    mov ds, [0xb0b8]
    iretd

    hostile_stubs hostile_stubs32, hostile_common32, 0
hostile_common32:
    push eax
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    pop dword ptr [0xb000]
    mov [0xb008], ebx
    mov [0xb010], ecx
    mov [0xb018], edx
    mov [0xb020], esi
    mov [0xb028], edi
    mov [0xb030], ebp
    pop eax
    mov [0xb0a0], eax
    mov dword ptr [0xb0a8], 0
    mov dword ptr [0xb0ac], 1
    mov ebx, 0x60227d00
    bt ebx, eax
    jnc 5f
    cmp eax, 32
    jae 5f
    pop dword ptr [0xb0a8]
    mov dword ptr [0xb0ac], 0
5:  pop dword ptr [0xb078]
    pop dword ptr [0xb080]
    pop dword ptr [0xb088]
    test byte ptr [0xb080], 3
    jz 6f
    pop dword ptr [0xb090]
    pop dword ptr [0xb098]
    jmp 7f
6:  mov [0xb090], esp
    mov [0xb098], ss
7:  mov eax, cr2
    mov [0xb0b0], eax
hostile_back32:
    mov eax, [0xb118]
    mov cr4, eax
    mov eax, [0xb110]
    mov cr3, eax
    mov eax, [0xb108]
    mov cr0, eax
    .byte 0xea
    .long hostile_back64
    .word 8

hostile_to16:
    hostile_unpage
    .byte 0xea
    .long hostile_real1 - hostile_low + 0x8000
    .word 0x38
hostile_from16:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset hostile_stack32_top
    jmp hostile_back32

    .section .rodata.hostile, "a", @progbits
    .balign 16
    .global hostile_low
hostile_low:
    .code16
hostile_real1:
    mov ax, 0x40
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word hostile_real2 - hostile_low + 0x8000, 0
hostile_real2:
    xor ax, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov ds, ax
    lidt [0xb150]
    mov ss, [0xb098]
    mov esp, [0xb090]
    push word ptr [0xb088]
    push word ptr [0xb080]
    push word ptr [0xb078]
    mov eax, [0xb000]
    mov ebx, [0xb008]
    mov ecx, [0xb010]
    mov edx, [0xb018]
    mov esi, [0xb020]
    mov edi, [0xb028]
    mov ebp, [0xb030]
    mov es, [0xb0b8]
    mov ds, [0xb0b8]
    iret

    hostile_stubs hostile_stubs16, hostile_common16, 1
hostile_common16:
    mov cs:[0xb000], eax
    mov cs:[0xb008], ebx
    mov cs:[0xb010], ecx
    mov cs:[0xb018], edx
    mov cs:[0xb020], esi
    mov cs:[0xb028], edi
    mov cs:[0xb030], ebp
    xor ax, ax
    mov ds, ax
    pop word ptr [0xb0a0]
    mov dword ptr [0xb0a8], 0
    mov dword ptr [0xb0ac], 1
    pop word ptr [0xb078]
    pop word ptr [0xb080]
    pop word ptr [0xb088]
    mov [0xb090], esp
    mov [0xb098], ss
    lgdt [0xb120]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long hostile_from16
    .word 0x18

    .global hostile_low_end
hostile_low_end:
    .code64
    .section .bss.hostile, "aw", @nobits
    .balign 4096
    .skip 4096
    .global hostile_ist_top
hostile_ist_top:
    .skip 4096
hostile_stack32_top:
    .global hostile_stack32
    .set hostile_stack32, hostile_stack32_top
    .skip 64
"#
);

unsafe extern "C" {
    /// Tries what the frame says in long mode.
    pub fn hostile_attempt64();
    /// In protected mode, without paging.
    pub fn hostile_attempt32();
    /// In real mode.
    pub fn hostile_attempt16();
    /// Handlers, 16 bytes apart.
    pub static hostile_stubs64: [[u8; 16]; 256];
    /// Of protected mode.
    pub static hostile_stubs32: [[u8; 16]; 256];
    /// Of real mode, before they were copied.
    pub static hostile_stubs16: [[u8; 16]; 256];
    /// What is copied to low memory.
    pub static hostile_low: u8;
    /// Where that ends.
    pub static hostile_low_end: u8;
    /// Where the stack of long mode's handlers begins.
    pub static hostile_ist_top: u8;
    /// Where that of ring 0 in protected mode does.
    pub static hostile_stack32: u8;
}
