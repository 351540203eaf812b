//! The other CPUs: INIT, SIPI, and a trampoline from real mode into the tables that the boot CPU made for them.

use crate::prelude::*;

/// CPUs that run.
static RUNNING: AtomicUsize = AtomicUsize::new(1);

/// How long a CPU may take to arrive, in microseconds.
const PATIENCE: u64 = 5_000_000;

unsafe extern "C" {
    static caisson_trampoline: u8;
    static caisson_trampoline_end: u8;
}

// Copied to `TRAMPOLINE`, where every CPU's tables map it; runs in real mode with cs = TRAMPOLINE / 16 and goes straight
// to long mode (APM volume 2, section 14.6) on the tables whose address is in its second word, which are this CPU's.
core::arch::global_asm!(
    r#"
    .section .rodata.trampoline, "a", @progbits
    .global caisson_trampoline, caisson_trampoline_end
    .code16
caisson_trampoline:
    jmp 1f
    .org caisson_trampoline + 4
    .long 0
    .quad 0
    .quad 0x00af9b000000ffff
    .word 15
    .long {at} + 8
1:
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov eax, 0x20
    mov cr4, eax
    mov eax, [{at} + 4]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    lgdt [{at} + 24]
    mov eax, 0x80010001
    mov cr0, eax
    .byte 0x66, 0xea
    .long {at} + 2f - caisson_trampoline
    .word 8
    .code64
2:
    mov rsp, {stack}
    mov rax, offset {start}
    call rax
caisson_trampoline_end:
    .text
"#,
    at = const TRAMPOLINE,
    stack = const STACK_TOP as i64,
    start = sym start,
);

/// Makes this CPU what every CPU is once it runs on its own tables.
pub(crate) fn ready() {
    cpu::enable();
    segments::load();
    features::enable();
    apic::enable();
}

/// The first Rust code of another CPU, on its own stack.
extern "C" fn start() -> ! {
    ready();
    RUNNING.fetch_add(1, Ordering::AcqRel);
    run::forever()
}

/// Starts every other CPU.
///
/// # Errors
/// The first CPU that doesn't arrive, or can't be reached: its APIC id has more than 8 bits, its tables lie above
/// 4 GiB, or there is no RAM for the trampoline. Those after it weren't tried.
pub fn start_cpus(boot: &BootInfo) -> Result<(), CpuId> {
    let page = Frame(TRAMPOLINE / PAGE_SIZE);
    let is_ram = boot.memory.iter().any(|range| (range.start.0..range.start.0 + range.bytes).contains(&TRAMPOLINE));
    let begin = &raw const caisson_trampoline;
    let length = &raw const caisson_trampoline_end as usize - begin as usize;
    kmap::map(page);
    for (number, id) in boot.cpus.iter().enumerate().skip(1) {
        let cpu = CpuId(number as u16);
        // The PML4s are in a row, and this CPU's is the first.
        let root = u32::try_from(this().cr3 + number as u64 * PAGE_SIZE).map_err(|_| cpu)?;
        if !is_ram || *id >= apic::BROADCAST {
            return Err(cpu);
        }
        // SAFETY: the trampoline is this many bytes of the image's read-only data.
        kmap::write(page, 0, unsafe { core::slice::from_raw_parts(begin, length) });
        kmap::write(page, 4, &root.to_le_bytes());
        let running = || RUNNING.load(Ordering::Acquire) > number;
        apic::command(*id, apic::INIT);
        clock::wait(200, || false);
        for patience in [200, PATIENCE] {
            if !running() {
                apic::command(*id, apic::STARTUP | page.0 as u32);
                clock::wait(patience, running);
            }
        }
        if !running() {
            return Err(cpu);
        }
    }
    kmap::unmap(page);
    Ok(())
}
