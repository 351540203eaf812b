//! A new vCPU: intercepts and the MSR map. Its registers come from the vmm.

use super::exits::REFLECTED;
use super::state::{ABSENT, Extra};
use super::vmcb::{CR8, MASKING, NESTED_PAGING, Vmcb};
use zerocopy::FromZeros;

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
    vmcb.set_intercepts();
    *extra = Extra { xcr0: 1, shadow_rip: u64::MAX, reload: ABSENT, ..Extra::default() };
}
