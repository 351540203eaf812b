//! A new vCPU: intercepts and the MSR map. Its registers come from the vmm.

use super::exits::REFLECTED;
use super::state::{ABSENT, Extra};
use super::vmcb::{CR8, MASKING, NESTED_PAGING, Vmcb};
use zerocopy::FromZeros;

/// What is intercepted always, as bit numbers of the words at 0x00c and 0x010:
/// 0 INTR, 1 NMI, 2 SMI, 3 INIT, 5 writes to CR0 that change more than TS and MP, 15 RDPMC, 18 CPUID, 22 INVD, 24 HLT,
/// 26 INVLPGA, 27 ports that the I/O map names, 28 MSRs that the MSR map names, 29 task switches, 30 FERR freeze,
/// 31 shutdown, 32 VMRUN (the CPU refuses a VMCB without it), 33 VMMCALL, 34 VMLOAD, 35 VMSAVE, 36 STGI, 37 CLGI,
/// 38 SKINIT, 41 WBINVD and WBNOINVD, 42 MONITOR, 43 and 44 MWAIT, 45 XSETBV. Not RDTSC, RDTSCP, PAUSE, INVLPG and
/// IRET, which are the guest's own.
const INTERCEPTED: [u32; 27] =
    [0, 1, 2, 3, 5, 15, 18, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 41, 42, 43, 44, 45];
/// Machine checks are the host's.
const MACHINE_CHECK: u32 = 1 << 18;

/// MSRs that the guest reads and writes itself, since the world switch exchanges them: first and last of each range,
/// and the map's bits that are cleared. SYSENTER_CS, _ESP and _EIP; STAR to SFMASK; FS, GS and KernelGsBase; TSC_AUX,
/// reads only. Not the PAT, since QEMU exchanges none.
const OWN_MSRS: [(u32, u32, u8); 4] =
    [(0x174, 0x176, 3), (0xc000_0081, 0xc000_0084, 3), (0xc000_0100, 0xc000_0102, 3), (0xc000_0103, 0xc000_0103, 1)];

/// Bytes of an MSR permission map: two frames. It has two bits an MSR; those from C000_0000 on begin at 0x800 (APM
/// volume 2, section 15.11).
pub const MSR_MAP: usize = 8192;

/// Everything is intercepted but the guest's own MSRs.
pub fn fill_msr_map(map: &mut [u8; MSR_MAP]) {
    map.fill(0xff);
    for (first, last, open) in OWN_MSRS {
        for msr in first..=last {
            let number = (msr & 0x1fff) + if msr >= 0xc000_0000 { 0x2000 } else { 0 };
            map[number as usize / 4] &= !(open << (number % 4 * 2));
        }
    }
}

/// What the host wants of a new vCPU, but for where its parts lie and its ASID. Its registers are zero, which no CPU
/// accepts: the vmm loads them all before it runs.
pub fn reset(vmcb: &mut Vmcb, extra: &mut Extra) {
    vmcb.zero();
    let control = &mut vmcb.control;
    control.cr = CR8 | CR8 << 16;
    control.exceptions = REFLECTED | MACHINE_CHECK;
    control.interrupt = MASKING;
    control.nested = NESTED_PAGING;
    for bit in INTERCEPTED {
        control.intercepts[bit as usize / 32] |= 1 << (bit % 32);
    }
    *extra = Extra { xcr0: 1, shadow_rip: u64::MAX, reload: ABSENT, ..Extra::default() };
}
