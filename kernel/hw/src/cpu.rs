//! The processor: features, control registers, caches and translations of this CPU.

use crate::prelude::*;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use x86_64::instructions::{hlt, interrupts};
use x86_64::registers::{control::Cr4, control::Cr4Flags, model_specific::Efer, model_specific::Msr};

/// SVM: bit 4 says that the firmware disabled it (APM volume 2, section 15.30.1).
const VM_CR: Msr = Msr::new(0xc001_0114);

/// CR0: protected mode, x87 present, its errors are exceptions, supervisor respects read-only, paging, and TS: FPU
/// instructions fault. APM volume 2, section 3.1.1.
pub(crate) const CR0: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// CR4: DE, PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, OSXSAVE, SMEP, SMAP. APM volume 2, section 3.1.3.
const CR4: u64 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 18 | 1 << 20 | 1 << 21;
/// EFER: SCE, LME, LMA, NXE, SVME.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12;

/// CPUID; all zero for a leaf that this CPU doesn't have.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    if leaf > __cpuid_count(leaf & 0x8000_0000, 0).eax {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, subleaf)
}

/// Checks what can't be done without.
///
/// # Errors
/// What is lacking.
pub(crate) fn detect() -> Result<(), &'static str> {
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
    if unsafe { VM_CR.read() } & 1 << 4 != 0 {
        return Err("SVM, which the firmware disabled");
    }
    Ok(())
}

/// Sets this CPU's control registers.
pub(crate) fn enable() {
    // UMIP, where there is one.
    let umip = u64::from(cpuid(7, 0).ecx >> 2 & 1) << 11;
    // SAFETY: every bit was checked by `detect`, which also holds for CPUs of the same machine; the values keep
    // long mode and the tables that are loaded, which use no-execute bits.
    unsafe {
        Efer::write_raw(EFER);
        Cr4::write_raw(CR4 | umip);
        Cr0::write_raw(CR0);
    }
}

/// Writes every dirty line of this CPU's caches back: WBNOINVD (F3 0F 09), or WBINVD where that is lacking or asked for.
pub(crate) fn write_back(invalidate: bool) {
    // SAFETY: neither changes memory contents that a program can see. Older CPUs take WBNOINVD for WBINVD.
    unsafe {
        match this().svm.wbnoinvd && !invalidate {
            true => asm!(".byte 0xf3, 0x0f, 0x09", options(nostack)),
            false => asm!("wbinvd", options(nostack)),
        }
    }
}

/// Forgets every translation of this CPU, the global ones too.
pub(crate) fn flush_tlb() {
    // SAFETY: turns CR4.PGE off and on, which flushes all (APM volume 2, section 5.5.3).
    unsafe {
        Cr4::update(|flags| flags.remove(Cr4Flags::PAGE_GLOBAL));
        Cr4::update(|flags| flags.insert(Cr4Flags::PAGE_GLOBAL));
    }
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits for an interrupt, takes it, and returns with interrupts off. What came before since they were off isn't
/// missed: STI holds interrupts off until HLT executes (APM volume 3, STI).
pub fn idle() {
    // SAFETY: called with interrupts off from kernel code which expects the handler to run.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Stops this CPU for good: with interrupts off only an NMI wakes it.
pub(crate) fn halt() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}
