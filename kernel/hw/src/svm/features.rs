//! What this machine's virtualisation can do, and how a CPU is made ready for it.

use crate::prelude::*;
use x86_64::registers::model_specific::Msr;

/// What CPUID 8000_000A and others say, and what all guests share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Number of ASIDs; they are 1 to this − 1.
    pub asids: u32,
    /// The least that flushes one vCPU's translations, for the VMCB.
    pub flush: u32,
    /// RDTSCP or RDPID, and so TSC_AUX.
    pub tsc_aux: bool,
    /// WBNOINVD, or it is to be taken for granted.
    pub wbnoinvd: bool,
    /// What a vCPU may hold.
    pub limits: Limits,
    /// The I/O permission map (APM volume 2, section 15.10.1): [`IOPM_FRAMES`] frames of ones intercept every port.
    pub iopm: Frame,
}

/// What guests may keep in the FPU, as far as the CPU has it: x87, SSE, AVX and protection keys.
const XCR0: u64 = 0x207;

/// Where the CPU keeps the host's registers while a guest runs.
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Frames of the I/O permission map.
pub(crate) const IOPM_FRAMES: u64 = 3;

impl Features {
    /// Those of this machine, which has SVM.
    pub(crate) fn detect(quirks: &Quirks, iopm: Frame) -> Self {
        let (svm, structured, extended) = (cpuid(0x8000_000a, 0), cpuid(7, 0), cpuid(0x8000_0001, 0));
        let limits = Limits { xcr0: u64::from(cpuid(0xd, 0).eax) & XCR0, quirks: *quirks };
        let flush = if svm.edx & 1 << 6 != 0 { TLB_FLUSH_ASID } else { TLB_FLUSH_ALL };
        let tsc_aux = extended.edx & 1 << 27 != 0 || structured.ecx & 1 << 22 != 0;
        let wbnoinvd = quirks.assume_wbnoinvd || cpuid(0x8000_0008, 0).ebx & 1 << 9 != 0;
        Self { asids: svm.ebx, flush, tsc_aux, wbnoinvd, limits, iopm }
    }
}

/// Makes this CPU ready for guests. Its segments and system-call registers are what a guest's exit restores.
pub(crate) fn enable() {
    // SAFETY: SVM exists and is on. Both frames are this CPU's own, for good.
    unsafe {
        Msr::new(VM_HSAVE_PA).write(this().host.0 + PAGE_SIZE);
        asm!("vmsave rax", in("rax") this().host.0, options(nostack, preserves_flags));
    }
}
