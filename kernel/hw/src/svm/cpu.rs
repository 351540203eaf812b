//! What this machine's virtualisation can do, and how a CPU is made ready for it.

use caisson_core::boot::Quirks;
use caisson_core::svm::state::Limits;
use caisson_proto::addr::{Frame, Spa};

use super::instructions::{read_cr0, read_cr4, vmsave, write_cr0, write_cr4};
use super::vcpu::FPU_BYTES;
use crate::cpu::{TASK_SWITCHED, cpuid, msr, rdmsr, wrmsr};
use crate::kmap;

const SVME: u64 = 1 << 12;
/// VM_CR: bit 4 says that the firmware disabled SVM (APM volume 2, section 15.30.1).
const VM_CR: u32 = 0xc001_0114;
const SVM_DISABLED: u64 = 1 << 4;
/// VM_HSAVE_PA.
const HOST_SAVE: u32 = 0xc001_0117;
/// CR4: OSFXSR, OSXMMEXCPT, OSXSAVE.
const CR4_FPU: u64 = 1 << 9 | 1 << 10 | 1 << 18;

/// Why no guest can run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID 8000_0001 ECX[2] is clear.
    NoSvm,
    /// The firmware switched it off.
    Disabled,
    /// CPUID 8000_000A EDX[0] is clear.
    NoNestedPaging,
    /// CPUID 1 ECX[26] is clear.
    NoXsave,
    /// A frame that was given isn't mapped.
    NoFrame,
}

/// What CPUID 8000_000A and others say.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Number of ASIDs; they are 1 to this − 1.
    pub asids: u32,
    /// The next rip is reported.
    pub next_rip: bool,
    /// One ASID can be flushed alone.
    pub flush_by_asid: bool,
    /// RDTSCP or RDPID, and so TSC_AUX.
    pub tsc_aux: bool,
    /// What a vCPU may hold.
    pub limits: Limits,
}

/// Finds out whether guests can run.
///
/// # Errors
/// [`Unsupported`].
pub fn supported(quirks: &Quirks) -> Result<Features, Unsupported> {
    const LAST: u32 = 0x8000_000a;
    if cpuid(0x8000_0000, 0).eax < LAST || cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0 {
        return Err(Unsupported::NoSvm);
    }
    // SAFETY: CPUs with SVM have this MSR.
    if unsafe { rdmsr(VM_CR) } & SVM_DISABLED != 0 {
        return Err(Unsupported::Disabled);
    }
    let svm = cpuid(LAST, 0);
    if svm.edx & 1 == 0 {
        return Err(Unsupported::NoNestedPaging);
    }
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Err(Unsupported::NoXsave);
    }
    Ok(Features {
        asids: svm.ebx,
        next_rip: svm.edx & 1 << 3 != 0,
        flush_by_asid: svm.edx & 1 << 6 != 0,
        tsc_aux: cpuid(0x8000_0001, 0).edx & 1 << 27 != 0 || cpuid(7, 0).ecx & 1 << 22 != 0,
        limits: Limits {
            xcr0: allowed_xcr0(),
            few_error_codes: quirks.few_error_codes,
            virq_reported_as_exception: quirks.virq_reported_as_exception,
        },
    })
}

/// The components that the CPU has, that a vCPU's area holds, and that the kernel knows to be user state:
/// x87, SSE, AVX, bounds, AVX-512, protection keys.
fn allowed_xcr0() -> u64 {
    let main = cpuid(0xd, 0);
    let mut allowed = u64::from(main.eax) & 0x2ff;
    for component in 2..10 {
        let place = cpuid(0xd, component);
        if (place.eax as usize).saturating_add(place.ebx as usize) > FPU_BYTES {
            allowed &= !(1 << component);
        }
    }
    allowed
}

/// A CPU that is ready for guests.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// The host's registers that only VMLOAD restores.
    pub(super) host: Spa,
    /// What it can do.
    pub features: Features,
}

impl Cpu {
    /// Makes this CPU ready, with two mapped kernel frames of its own: the CPU's save area, and the host's registers
    /// that VMLOAD restores, as they are now.
    ///
    /// # Errors
    /// [`Unsupported`].
    pub fn init(save_area: Frame, host: Frame, quirks: &Quirks) -> Result<Self, Unsupported> {
        let features = supported(quirks)?;
        if !kmap::zero(save_area) || !kmap::zero(host) {
            return Err(Unsupported::NoFrame);
        }
        // SAFETY: SVM exists. VM_HSAVE_PA gets a frame that is the kernel's and nobody else's, and so does VMSAVE.
        // The bits of CR4 enable instructions that the kernel uses for guests only; TS keeps everybody else out.
        unsafe {
            wrmsr(msr::EFER, rdmsr(msr::EFER) | SVME);
            wrmsr(HOST_SAVE, save_area.spa().0);
            vmsave(host.spa().0);
            write_cr4(read_cr4() | CR4_FPU);
            write_cr0(read_cr0() | TASK_SWITCHED);
        }
        Ok(Self { host: host.spa(), features })
    }
}
