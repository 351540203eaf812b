//! A vCPU's frames: which it has, what lies where, and what is done with them outside the world switch.

use super::resident;
use caisson_core::svm::{cpuid::Table, reset::MSR_MAP};

use crate::prelude::*;

/// What is left for the FPU.
pub(super) const FPU_BYTES: usize = 2 * PAGE_SIZE as usize - size_of::<Extra>();
/// Where an XSAVE area has MXCSR (APM volume 2, section 11.5.2), and its value at reset.
const MXCSR: (usize, u32) = (24, 0x1f80);

/// The frames of one vCPU.
///
/// At any time one CPU at the most uses them, through one reference: the scheduler runs a vCPU on its home CPU only,
/// and kernel operations touch it only while it is in its exit or stopped. The vmm shares the state page, and nothing
/// else. Later contexts (more VMCBs for nested guests) are further frames.
#[repr(C, align(4096))]
pub(crate) struct Vcpu {
    pub page: Page,
    pub vmcb: Vmcb,
    pub fpu: [u8; FPU_BYTES],
    pub extra: Extra,
    msr_map: [u8; MSR_MAP],
    pub cpuid: Table,
}

const _: () = assert!(size_of::<Vcpu>() as u64 == VCPU_FRAMES * PAGE_SIZE && offset_of!(VcpuState, gpr) == 0);
const _: () = assert!(offset_of!(Vcpu, fpu) % 64 == 0 && offset_of!(Vcpu, msr_map) as u64 == 4 * PAGE_SIZE);
const _: () = assert!(offset_of!(Vcpu, cpuid) as u64 == (VCPU_FRAMES - 1) * PAGE_SIZE);

/// The state page: shared memory, so it is only ever read and written word by word.
#[repr(C)]
pub(crate) struct Page([AtomicU64; 512]);

impl StatePage for Page {
    fn get(&self, offset: usize) -> u64 {
        self.0[offset / 8 % 512].load(Ordering::Relaxed)
    }
    fn set(&mut self, offset: usize, word: u64) {
        self.0[offset / 8 % 512].store(word, Ordering::Relaxed);
    }
}

/// Where a vCPU is.
struct Place {
    /// First of its frames; 0 for none.
    first: AtomicU64,
    /// The CPU that holds its resident registers, or [`NOWHERE`].
    cpu: AtomicU16,
}

const NOWHERE: u16 = u16::MAX;
static PLACES: [Place; MAX_VMS * MAX_VCPUS] =
    [const { Place { first: AtomicU64::new(0), cpu: AtomicU16::new(NOWHERE) } }; MAX_VMS * MAX_VCPUS];

fn place(context: Context) -> Option<&'static Place> {
    PLACES.get(context.index().checked_sub(MAX_SERVICES)?)
}

/// A vCPU. The reference is dropped before anything else looks for it.
pub(crate) fn vcpu(context: Context) -> Option<&'static mut Vcpu> {
    let first = place(context)?.first.load(Ordering::Acquire);
    // SAFETY: these frames are the kernel's, mapped, and this vCPU's from `create` to `forget`; see `Vcpu` for who
    // uses them. All bits are valid in them.
    (first != 0).then(|| unsafe { &mut *kmap::ptr(Frame(first)).cast() })
}

/// Index of a vCPU in its VM: a VM's vCPUs are in a row.
pub(crate) fn index(context: Context) -> u8 {
    (context.index().wrapping_sub(MAX_SERVICES) % MAX_VCPUS) as u8
}

/// Gives a vCPU its frames, in reset state. No CPUID leaf exists.
pub(crate) fn create(context: Context, first: Frame, asid: u32, root: Frame) {
    (first.0..first.0 + VCPU_FRAMES).for_each(|frame| kmap::zero(Frame(frame)));
    let Some(place) = place(context) else { return };
    place.cpu.store(NOWHERE, Ordering::Relaxed);
    place.first.store(first.0, Ordering::Release);
    let Some(vcpu) = vcpu(context) else { return };
    let (at, mxcsr) = MXCSR;
    vcpu.fpu[at..at + 4].copy_from_slice(&mxcsr.to_le_bytes());
    reset::fill_msr_map(&mut vcpu.msr_map);
    reset::reset(&mut vcpu.vmcb, &mut vcpu.extra);
    let (msrpm, control) = (vcpu.spa(offset_of!(Vcpu, msr_map)), &mut vcpu.vmcb.control);
    (control.iopm, control.msrpm) = (this().svm.iopm.spa().0, msrpm.0);
    (control.asid, control.tlb_control, control.n_cr3) = (asid, TLB_FLUSH_ALL, root.spa().0);
    // A vmm can't decode what an encrypted guest writes to CR0. That one has no ASID yet.
    control.intercepts[0] &= if asid == 0 { !CR0_WRITES } else { u32::MAX };
}

/// A vCPU has no frames any more, and its registers in whichever CPU are nobody's.
pub(crate) fn forget(context: Context) {
    if let Some(place) = place(context) {
        place.first.store(0, Ordering::Release);
        place.cpu.store(NOWHERE, Ordering::Relaxed);
    }
}

fn is_here(context: Context) -> bool {
    place(context).is_some_and(|place| place.cpu.load(Ordering::Relaxed) == this().local.cpu.0)
}

/// Makes this CPU the one that holds the registers of a vCPU that aren't exchanged at each exit.
pub(crate) fn make_resident(context: Context) {
    if is_here(context) {
        return;
    }
    let before = this().resident.replace(Some(context)).filter(|before| is_here(*before));
    if let Some((other, place)) = before.and_then(|before| vcpu(before).zip(place(before))) {
        resident::switch_out(other);
        place.cpu.store(NOWHERE, Ordering::Relaxed);
    }
    if let Some((vcpu, place)) = vcpu(context).zip(place(context)) {
        // Another vCPU of the VM may have been here under the same ASID.
        vcpu.flush();
        place.cpu.store(this().local.cpu.0, Ordering::Relaxed);
    }
}

/// Fills groups of the state page.
pub(crate) fn save(context: Context, vcpu: &mut Vcpu, groups: Groups) {
    if groups.intersects(RESIDENT) && is_here(context) {
        resident::switch_out(vcpu);
    }
    state::save(&mut vcpu.page, groups, &mut vcpu.vmcb, &mut vcpu.extra);
}

/// The message to the vmm, and the groups that go with it. `code` is what [`Vcpu::enter`] returned, or KICK or TIMER.
#[inline(always)]
pub(crate) fn exit(context: Context, vcpu: &mut Vcpu, code: u16) -> Exit {
    let Vcpu { page, vmcb, extra, .. } = vcpu;
    let (info1, info2, next_rip) = match code {
        // The kernel's own codes.
        _ if code > code::INVALID => (0, 0, 0),
        _ => (vmcb.control.info1, vmcb.control.info2, exits::next_rip(code, vmcb.control.info2, vmcb.control.next_rip)),
    };
    let flags = exits::flags(vmcb, extra, next_rip);
    exits::drop_fresh(vmcb, extra);
    let (rip, rax) = (vmcb.save.rip, vmcb.save.rax);
    let (rcx, rdx) = (page.get(gpr(1)), page.get(gpr(2)));
    let groups = exits::groups(code, info1, rcx);
    if !groups.is_empty() {
        save(context, vcpu, groups);
    }
    Exit { vcpu: index(context), context: 0, code, flags, info1, info2, rip, rax, rcx, rdx, next_rip }
}

impl Vcpu {
    /// The physical address of a part.
    pub(super) fn spa(&self, offset: usize) -> Spa {
        Spa(kmap::frame_at(&raw const *self as u64).spa().0 + offset as u64)
    }

    /// Makes the next entry begin without translations: after a change of nested tables, and when the vCPU comes
    /// from another CPU or another vCPU of its VM was here.
    pub(crate) fn flush(&mut self) {
        self.vmcb.control.tlb_control = this().svm.flush;
    }
}
