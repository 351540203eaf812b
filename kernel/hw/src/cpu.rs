//! The processor: features, control registers, caches and translations of this CPU.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::sync::atomic::{AtomicBool, Ordering};

/// Why this machine can't run the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum Missing {
    /// No-execute pages (CPUID 8000_0001 EDX\[20\]).
    NoExecute,
    /// SMEP and SMAP (CPUID 7 EBX\[7\] and \[20\]).
    SupervisorProtection,
    /// SYSCALL in long mode (CPUID 8000_0001 EDX\[11\]).
    Syscall,
}

/// Model-specific registers (APM volume 2, appendix A).
pub mod msr {
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// Selectors of SYSCALL and SYSRET.
    pub const STAR: u32 = 0xc000_0081;
    /// Entry of SYSCALL.
    pub const LSTAR: u32 = 0xc000_0082;
    /// Flags that SYSCALL clears.
    pub const SFMASK: u32 = 0xc000_0084;
}

/// CR0: protected mode, x87 present, its errors are exceptions, supervisor respects read-only, paging, and TS: FPU
/// instructions fault. APM volume 2, section 3.1.1.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31 | TASK_SWITCHED;
/// CR0.TS.
pub const TASK_SWITCHED: u64 = 1 << 3;
/// CR4: DE, PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, SMEP, SMAP. APM volume 2, section 3.1.3.
const CR4: u64 = 1 << 3 | 1 << 5 | 1 << 6 | PAGE_GLOBAL | 1 << 9 | 1 << 10 | 1 << 20 | 1 << 21;
const PAGE_GLOBAL: u64 = 1 << 7;
/// CR4.UMIP, where there is one (CPUID 7 ECX\[2\]).
const UMIP: u64 = 1 << 11;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;

static WBNOINVD: AtomicBool = AtomicBool::new(false);

/// CPUID; all zero for a leaf that this CPU doesn't have.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    if leaf > __cpuid_count(leaf & 0x8000_0000, 0).eax {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, subleaf)
}

/// Checks what can't be done without, and settles which instruction writes caches back.
pub(crate) fn detect(assume_wbnoinvd: bool) -> Result<(), Missing> {
    let extended = cpuid(0x8000_0001, 0).edx;
    let structured = cpuid(7, 0).ebx;
    if extended & 1 << 20 == 0 {
        return Err(Missing::NoExecute);
    }
    if extended & 1 << 11 == 0 {
        return Err(Missing::Syscall);
    }
    if structured & (1 << 7 | 1 << 20) != 1 << 7 | 1 << 20 {
        return Err(Missing::SupervisorProtection);
    }
    WBNOINVD.store(assume_wbnoinvd || cpuid(0x8000_0008, 0).ebx & 1 << 9 != 0, Ordering::Relaxed);
    Ok(())
}

/// Sets this CPU's control registers.
pub(crate) fn enable() {
    let umip = if cpuid(7, 0).ecx & 1 << 2 != 0 { UMIP } else { 0 };
    // SAFETY: every bit was checked by `detect`, which also holds for CPUs of the same machine; the values keep
    // long mode and the tables that are loaded, which use no-execute bits.
    unsafe {
        wrmsr(msr::EFER, EFER);
        asm!("mov cr4, {}", in(reg) CR4 | umip, options(nostack));
        asm!("mov cr0, {}", in(reg) CR0, options(nostack));
    }
}

/// Bits of a physical address (CPUID 8000_0008 EAX\[7:0\]).
pub fn phys_bits() -> u8 {
    cpuid(0x8000_0008, 0).eax as u8
}

/// Whether [`write_back`] executes WBNOINVD.
pub fn has_wbnoinvd() -> bool {
    WBNOINVD.load(Ordering::Relaxed)
}

/// Writes every dirty line of this CPU's caches back: WBNOINVD (F3 0F 09), or WBINVD where that is lacking.
pub fn write_back() {
    if has_wbnoinvd() {
        // SAFETY: changes no memory contents that a program can see. Older CPUs take it for WBINVD.
        unsafe { asm!(".byte 0xf3, 0x0f, 0x09", options(nostack)) }
    } else {
        write_back_invalidate();
    }
}

/// Writes back and invalidates this CPU's caches: WBINVD.
pub fn write_back_invalidate() {
    // SAFETY: changes no memory contents that a program can see.
    unsafe { asm!("wbinvd", options(nostack)) }
}

/// Forgets this CPU's translation of one page, a global one too.
pub fn flush_page(address: u64) {
    // SAFETY: a lost translation is found again by a walk.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) }
}

/// Forgets this CPU's translations of ring 3's pages.
pub fn flush_user() {
    // SAFETY: loads CR3 with what it has.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) }
}

/// Forgets every translation of this CPU, the global ones too.
pub fn flush_tlb() {
    // SAFETY: turns CR4.PGE off and on, which flushes all (APM volume 2, section 5.5.3).
    unsafe {
        asm!("mov {0}, cr4", "mov {1}, {0}", "and {0}, {2}", "mov cr4, {0}", "mov cr4, {1}",
            out(reg) _, out(reg) _, const !PAGE_GLOBAL as i32, options(nostack));
    }
}

/// The time-stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    let address;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    address
}

/// Reads a model-specific register.
///
/// # Safety
/// This CPU has it.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as the caller says.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// This CPU has it, accepts the value, and nothing that Rust relies on changes by it.
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Copies bytes by an instruction that the compiler doesn't see into: others may change them meanwhile.
///
/// # Safety
/// Both ranges are mapped, the target is writable and nothing that Rust holds a reference to but the caller.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: as the caller says; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _,
            options(nostack, preserves_flags));
    }
}

/// Waits for an interrupt, takes it, and returns with interrupts off. What came before since they were off isn't
/// missed: STI holds interrupts off until HLT executes (APM volume 3, STI).
pub fn idle() {
    // SAFETY: called with interrupts off from kernel code which expects the handler to run.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Takes the interrupts that are pending now.
pub fn poll_interrupts() {
    // SAFETY: as in `idle`.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

/// Tells the CPU that this is a spin loop.
#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off only an NMI wakes it, which is harmless.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// I/O ports.
pub mod port {
    use core::arch::asm;

    /// Writes a byte.
    ///
    /// # Safety
    /// What the device does with it harms nothing that Rust relies on.
    pub unsafe fn write(port: u16, value: u8) {
        // SAFETY: as the caller says.
        unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
    }

    /// Reads a byte.
    ///
    /// # Safety
    /// As [`write`].
    pub unsafe fn read(port: u16) -> u8 {
        let value;
        // SAFETY: as the caller says.
        unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
        value
    }
}
