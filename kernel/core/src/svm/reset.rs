//! A vCPU before its first instruction: registers (APM volume 2, table 14-1), intercepts, and the MSR map.

use caisson_proto::addr::{Frame, Spa};
use caisson_proto::vcpu::Segment;
use zerocopy::FromZeros;

use super::exits::REFLECTED;
use super::state::{ABSENT, Extra, SVME};
use super::vmcb::{CR8, Intercepts, NESTED_PAGING, VirtualInterrupt, Vmcb};

/// What is intercepted always; VINTR only while a window is asked for.
const INTERCEPTS: Intercepts = Intercepts::all().difference(Intercepts::VINTR);

/// Machine checks are the host's.
const MACHINE_CHECK: u32 = 1 << 18;

/// MSRs that the guest reads and writes itself: the world switch exchanges them. The PAT isn't among them, since
/// QEMU exchanges no PAT.
const OWN_MSRS: [u32; 11] = [
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS base
    0xc000_0101, // GS base
    0xc000_0102, // KernelGsBase
    0xc000_0103, // TSC_AUX: reads only
];
const TSC_AUX: u32 = 0xc000_0103;

/// Bytes of an MSR permission map: two frames.
pub const MSR_MAP: usize = 8192;

/// Where the two bits of an MSR lie (APM volume 2, section 15.11): byte and shift.
const fn msr_bits(msr: u32) -> Option<(usize, u32)> {
    let (base, first) = match msr {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    let number = msr - first;
    Some((base + number as usize / 4, number % 4 * 2))
}

/// Everything is intercepted but the guest's own MSRs.
pub fn fill_msr_map(map: &mut [u8; MSR_MAP]) {
    map.fill(0xff);
    for msr in OWN_MSRS {
        let open = if msr == TSC_AUX { 1 } else { 3 };
        if let Some((byte, shift)) = msr_bits(msr) {
            map[byte] &= !(open << shift);
        }
    }
}

/// Where the parts of a vCPU lie.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The I/O permission map: three frames of ones.
    pub iopm: Frame,
    /// The MSR permission map: two frames.
    pub msrpm: Spa,
    /// Its VM's ASID, not 0.
    pub asid: u32,
    /// Root of the view that it starts in.
    pub root: Frame,
}

const PRESENT: u16 = 1 << 7;
const SYSTEM: u16 = 0;
const USER: u16 = 1 << 4;

const fn real_mode(selector: u16, base: u64, attributes: u16) -> Segment {
    Segment { selector, attributes, limit: 0xffff, base }
}

/// Reset state.
pub fn reset(vmcb: &mut Vmcb, extra: &mut Extra, setup: &Setup) {
    vmcb.zero();
    let control = &mut vmcb.control;
    control.cr = CR8 | CR8 << 16;
    control.exceptions = REFLECTED | MACHINE_CHECK;
    control.iopm = setup.iopm.spa().0;
    control.msrpm = setup.msrpm.0;
    control.asid = setup.asid;
    control.interrupt = VirtualInterrupt::MASKING.bits();
    control.nested = NESTED_PAGING;
    control.n_cr3 = setup.root.spa().0;
    let save = &mut vmcb.save;
    let data = real_mode(0, 0, PRESENT | USER | 3);
    save.segments = [data; 6];
    save.segments[1] = real_mode(0xf000, 0xffff_0000, PRESENT | USER | 0xb);
    save.gdtr = real_mode(0, 0, 0);
    save.idtr = real_mode(0, 0, 0);
    save.ldtr = real_mode(0, 0, PRESENT | SYSTEM | 2);
    save.tr = real_mode(0, 0, PRESENT | SYSTEM | 3);
    save.cr0 = 0x6000_0010;
    save.efer = SVME;
    save.rflags = 2;
    save.rip = 0xfff0;
    save.dr6 = 0xffff_0ff0;
    save.dr7 = 0x400;
    save.pat = 0x0007_0406_0007_0406;
    vmcb.set_intercepts(INTERCEPTS);
    *extra = Extra { xcr0: 1, shadow_rip: u64::MAX, reload: ABSENT, ..Extra::default() };
}
