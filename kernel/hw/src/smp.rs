//! The other CPUs: INIT, SIPI, and a trampoline from real mode into the tables that the boot CPU made for them.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use caisson_core::boot::BootInfo;
use caisson_proto::abi::MAX_CPUS;
use caisson_proto::addr::{CpuId, Frame, PAGE_SIZE};

use crate::layout::{STACK_TOP, TRAMPOLINE};
use crate::percpu::this;
use crate::tables::{Bits, entry};
use crate::{apic, clock, cpu, kmap, segments};

/// PML4 of each CPU.
static ROOTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// CPUs that run.
static RUNNING: AtomicUsize = AtomicUsize::new(1);
/// What a CPU runs once it is set up.
static MAIN: spin::Once<fn() -> !> = spin::Once::new();

/// How long a CPU may take to arrive, in microseconds.
const PATIENCE: u64 = 5_000_000;

/// A CPU that doesn't start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent(pub CpuId);

pub(crate) fn set_root(cpu: CpuId, root: Frame) {
    if let Some(slot) = ROOTS.get(usize::from(cpu.0)) {
        slot.store(root.0, Ordering::Relaxed);
    }
}

/// The PML4 of a CPU.
pub(crate) fn root(cpu: CpuId) -> Frame {
    Frame(ROOTS.get(usize::from(cpu.0)).map_or(0, |slot| slot.load(Ordering::Relaxed)))
}

/// Loads CR3.
///
/// # Safety
/// The tables at `root` map everything that the caller uses where it is.
pub(crate) unsafe fn switch_to(root: Frame) {
    // SAFETY: as the caller says.
    unsafe { asm!("mov cr3, {}", in(reg) root.spa().0, options(nostack)) }
}

unsafe extern "C" {
    static caisson_trampoline: u8;
    static caisson_trampoline_end: u8;
}

// Copied to `TRAMPOLINE`; runs in real mode with cs = TRAMPOLINE / 16, goes straight to long mode (APM volume 2,
// section 14.6) on the tables in the next page, which have this CPU's own area at its place.
core::arch::global_asm!(
    r#"
    .section .rodata.trampoline, "a", @progbits
    .global caisson_trampoline, caisson_trampoline_end
    .code16
caisson_trampoline:
    jmp 1f
    .org caisson_trampoline + 8
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
    mov eax, {at} + 0x1000
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
    xor ebp, ebp
    mov rax, offset {start}
    call rax
    ud2
caisson_trampoline_end:
    .text
"#,
    at = const TRAMPOLINE,
    stack = const STACK_TOP as i64,
    start = sym start,
);

/// The first Rust code of another CPU, on its own stack.
extern "C" fn start() -> ! {
    // SAFETY: these are this CPU's own tables, which map the kernel as the trampoline's do.
    unsafe { asm!("mov cr3, {}", in(reg) this().cr3, options(nostack)) };
    cpu::enable();
    segments::load();
    apic::enable();
    let main = MAIN.get();
    RUNNING.fetch_add(1, Ordering::AcqRel);
    match main {
        Some(main) => main(),
        None => cpu::halt(),
    }
}

/// CPUs that run.
pub fn running() -> usize {
    RUNNING.load(Ordering::Acquire)
}

fn prepare(cpu: CpuId) {
    let [code, root, directory_pointers, directory] = [0, 1, 2, 3].map(|n| Frame(TRAMPOLINE / PAGE_SIZE + n));
    let table = Bits::PRESENT | Bits::WRITE;
    for frame in [code, root, directory_pointers, directory] {
        kmap::map(frame);
        kmap::zero(frame);
    }
    let begin = &raw const caisson_trampoline;
    let length = &raw const caisson_trampoline_end as usize - begin as usize;
    // SAFETY: the trampoline is this many bytes of the image's read-only data.
    kmap::write(code, 0, unsafe { core::slice::from_raw_parts(begin, length) });
    kmap::put(root, 0, &entry(directory_pointers, table));
    kmap::put(directory_pointers, 0, &entry(directory, table));
    kmap::put(directory, 0, &entry(Frame(0), table | Bits::LARGE));
    let own = kmap::get::<u64>(self::root(cpu), 511 * 8).unwrap_or(0);
    kmap::put(root, 511 * 8, &own);
}

/// Starts every other CPU. Each calls `main` on its own stack, with interrupts off, maybe before this returns.
///
/// # Errors
/// [`Absent`] names the first CPU that doesn't arrive, or can't be reached: its APIC id has more than 8 bits, or
/// there is no RAM for the trampoline. Those after it weren't tried.
pub fn start_cpus(boot: &BootInfo, main: fn() -> !) -> Result<(), Absent> {
    MAIN.call_once(|| main);
    let low_memory = boot
        .memory
        .iter()
        .any(|range| range.start.0 <= TRAMPOLINE && range.start.0 + range.bytes >= TRAMPOLINE + 4 * PAGE_SIZE);
    for (number, id) in boot.cpus.iter().enumerate().skip(1) {
        let cpu = CpuId(number as u16);
        if !low_memory || *id >= apic::BROADCAST {
            return Err(Absent(cpu));
        }
        prepare(cpu);
        let vector = (TRAMPOLINE / PAGE_SIZE) as u32;
        apic::command(*id, apic::INIT);
        clock::delay(200);
        apic::command(*id, apic::STARTUP | vector);
        clock::delay(200);
        if running() == number {
            apic::command(*id, apic::STARTUP | vector);
        }
        let end = cpu::tsc() + PATIENCE * clock::tsc_khz() / 1000;
        while running() == number {
            if cpu::tsc() > end {
                return Err(Absent(cpu));
            }
            cpu::pause();
        }
    }
    (0..4).for_each(|page| kmap::unmap(Frame(TRAMPOLINE / PAGE_SIZE + page)));
    Ok(())
}
