//! The processor: features, control registers, caches and translations of this CPU.

use core::{
    arch::asm, arch::x86_64::__cpuid_count, arch::x86_64::CpuidResult, sync::atomic::AtomicBool, sync::atomic::Ordering,
};

/// Model-specific registers (APM volume 2, appendix A).
pub(crate) mod msr {
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// Selectors of SYSCALL and SYSRET.
    pub const STAR: u32 = 0xc000_0081;
    /// Entry of SYSCALL.
    pub const LSTAR: u32 = 0xc000_0082;
    /// Flags that SYSCALL clears.
    pub const SFMASK: u32 = 0xc000_0084;
    /// What RDTSCP and RDPID tell.
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// SEV: flushes a guest's page: its address in the host, and the ASID in bits 11:0 (section 15.34.9).
    pub const VM_PAGE_FLUSH: u32 = 0xc001_011e;
    /// SVM: bit 4 says that the firmware disabled it (section 15.30.1).
    pub const VM_CR: u32 = 0xc001_0114;
    /// SVM: where the CPU keeps the host's registers while a guest runs.
    pub const VM_HSAVE_PA: u32 = 0xc001_0117;
}

/// CR0: protected mode, x87 present, its errors are exceptions, supervisor respects read-only, paging, and TS: FPU
/// instructions fault. APM volume 2, section 3.1.1.
pub(crate) const CR0: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// CR4: DE, PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, OSXSAVE, SMEP, SMAP. APM volume 2, section 3.1.3.
const CR4: u64 = 1 << 3 | 1 << 5 | 1 << 6 | PAGE_GLOBAL | 1 << 9 | 1 << 10 | 1 << 18 | 1 << 20 | 1 << 21;
const PAGE_GLOBAL: u64 = 1 << 7;
/// EFER: SCE, LME, LMA, NXE, SVME.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12;

static WBNOINVD: AtomicBool = AtomicBool::new(false);

/// CPUID; all zero for a leaf that this CPU doesn't have.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    if leaf > __cpuid_count(leaf & 0x8000_0000, 0).eax {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, subleaf)
}

/// Checks what can't be done without, and settles which instruction writes caches back.
///
/// # Errors
/// What is lacking.
pub(crate) fn detect(assume_wbnoinvd: bool) -> Result<(), &'static str> {
    let (extended, structured) = (cpuid(0x8000_0001, 0), cpuid(7, 0).ebx);
    let needed = [
        (extended.edx >> 20, "no-execute pages"),
        (extended.edx >> 11, "SYSCALL"),
        (structured >> 7, "SMEP"),
        (structured >> 20, "SMAP"),
        (extended.ecx >> 2, "SVM; on QEMU use -accel tcg -cpu max"),
        (cpuid(0x8000_000a, 0).edx, "nested paging"),
        (cpuid(1, 0).ecx >> 26, "XSAVE"),
    ];
    if let Some((_, name)) = needed.into_iter().find(|(register, _)| register & 1 == 0) {
        return Err(name);
    }
    // SAFETY: CPUs with SVM have this MSR.
    if unsafe { rdmsr(msr::VM_CR) } & 1 << 4 != 0 {
        return Err("SVM, which the firmware disabled");
    }
    WBNOINVD.store(assume_wbnoinvd || cpuid(0x8000_0008, 0).ebx & 1 << 9 != 0, Ordering::Relaxed);
    Ok(())
}

/// Sets this CPU's control registers.
pub(crate) fn enable() {
    // UMIP, where there is one.
    let umip = u64::from(cpuid(7, 0).ecx >> 2 & 1) << 11;
    // SAFETY: every bit was checked by `detect`, which also holds for CPUs of the same machine; the values keep
    // long mode and the tables that are loaded, which use no-execute bits.
    unsafe {
        wrmsr(msr::EFER, EFER);
        asm!("mov cr4, {}", "mov cr0, {}", in(reg) CR4 | umip, in(reg) CR0, options(nostack));
    }
}

/// Whether [`write_back`] executes WBNOINVD.
pub(crate) fn has_wbnoinvd() -> bool {
    WBNOINVD.load(Ordering::Relaxed)
}

/// Writes every dirty line of this CPU's caches back: WBNOINVD (F3 0F 09), or WBINVD where that is lacking or asked for.
pub(crate) fn write_back(invalidate: bool) {
    // SAFETY: neither changes memory contents that a program can see. Older CPUs take WBNOINVD for WBINVD.
    unsafe {
        match has_wbnoinvd() && !invalidate {
            true => asm!(".byte 0xf3, 0x0f, 0x09", options(nostack)),
            false => asm!("wbinvd", options(nostack)),
        }
    }
}

/// Forgets this CPU's translation of one page, a global one too.
pub(crate) fn flush_page(address: u64) {
    // SAFETY: a lost translation is found again by a walk.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) }
}

/// Forgets every translation of this CPU, the global ones too.
pub(crate) fn flush_tlb() {
    // SAFETY: turns CR4.PGE off and on, which flushes all (APM volume 2, section 5.5.3).
    unsafe {
        asm!("mov {0}, cr4", "mov {1}, {0}", "and {0}, {2}", "mov cr4, {0}", "mov cr4, {1}",
            out(reg) _, out(reg) _, const !PAGE_GLOBAL as i32, options(nostack));
    }
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
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
unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as the caller says.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// This CPU has it, accepts the value, and nothing that Rust relies on changes by it.
pub(crate) unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Waits for an interrupt, takes it, and returns with interrupts off. What came before since they were off isn't
/// missed: STI holds interrupts off until HLT executes (APM volume 3, STI).
pub fn idle() {
    // SAFETY: called with interrupts off from kernel code which expects the handler to run.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Takes the interrupts that are pending now.
pub(crate) fn poll_interrupts() {
    // SAFETY: as in `idle`.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

/// Stops this CPU for good.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off only an NMI wakes it, which is harmless.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// I/O ports.
pub(crate) mod port {
    use core::arch::asm;

    /// Writes a byte.
    ///
    /// # Safety
    /// What the device does with it harms nothing that Rust relies on.
    pub unsafe fn write(port: u16, value: u8) {
        // SAFETY: as the caller says.
        unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
    }
}
