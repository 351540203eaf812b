//! A vCPU's frames: what lies where, and what is done with them outside the world switch.

use core::mem::offset_of;

use caisson_core::svm::cpuid::Table;
use caisson_core::svm::exits;
use caisson_core::svm::reset::{self, MSR_MAP, Setup};
use caisson_core::svm::state::{self, Extra, StatePage};
use caisson_core::svm::vmcb::{TLB_FLUSH_ALL, TLB_FLUSH_ASID, Vmcb};
use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, PAGE_SIZE, Spa};
use caisson_proto::kernel::VCPU_FRAMES;
use caisson_proto::vcpu::{CpuidEntry, Exit, Groups, Resume, VcpuState};
use zerocopy::FromZeros;

use super::cpu::{Cpu, Features};
use super::fpu::MXCSR;
use super::resident::{self, Registers};
use crate::kmap;

const PAGE: usize = PAGE_SIZE as usize;
/// Offsets of the parts, in bytes; see [`VCPU_FRAMES`].
pub(super) const VMCB: usize = PAGE;
const FPU: usize = 2 * PAGE;
const MSRPM: usize = 4 * PAGE;
const CPUID: usize = 6 * PAGE;
/// [`Extra`] has the end of the FPU's frames.
const EXTRA: usize = MSRPM - 1024;
/// What is left for the FPU.
pub(super) const FPU_BYTES: usize = EXTRA - FPU;

const _: () = assert!(CPUID + PAGE == VCPU_FRAMES as usize * PAGE && MSRPM + MSR_MAP == CPUID);
const _: () = assert!(size_of::<Extra>() <= 1024 && offset_of!(VcpuState, gpr) == 0);

/// The frames of one vCPU.
///
/// At any time one CPU at the most uses them, through one `Vcpu`: the scheduler runs a vCPU on its home CPU only, and
/// kernel operations touch it only while it is in its exit or stopped. The vmm shares the state page, and nothing
/// else.
///
/// Later contexts (more VMCBs for nested guests) are further frames; `vmcb` and `vmcb_spa` are where they fork.
#[derive(Debug)]
pub struct Vcpu {
    first: Frame,
}

/// The parts, apart from each other.
pub(super) struct Parts<'a> {
    pub vmcb: &'a mut Vmcb,
    pub extra: &'a mut Extra,
    pub cpuid: &'a mut Table,
    pub page: Page,
}

impl<'a> Parts<'a> {
    /// The parts of the vCPU whose frames are mapped from `base` on.
    ///
    /// # Safety
    /// Nobody else refers to them, or makes the CPU change the VMCB, during `'a`.
    #[inline]
    pub(super) unsafe fn at(base: *mut u8) -> Self {
        // SAFETY: as the caller says; they don't overlap, are aligned, and any bits are valid in them.
        unsafe {
            Self {
                vmcb: &mut *base.add(VMCB).cast(),
                extra: &mut *base.add(EXTRA).cast(),
                cpuid: &mut *base.add(CPUID).cast(),
                page: Page(base.cast()),
            }
        }
    }
}

/// The state page: shared memory, so it is only ever read and written word by word.
#[derive(Clone, Copy)]
pub(super) struct Page(*mut u64);

impl Page {
    #[inline]
    fn word(self, offset: usize) -> *mut u64 {
        self.0.wrapping_add(offset / 8 % (PAGE / 8))
    }
}

impl StatePage for Page {
    #[inline]
    fn get(&self, offset: usize) -> u64 {
        // SAFETY: aligned, within the page, which is mapped while its `Vcpu` exists; volatile, since the vmm may
        // write it at any time.
        unsafe { self.word(offset).read_volatile() }
    }
    #[inline]
    fn set(&mut self, offset: usize, word: u64) {
        // SAFETY: as in `get`.
        unsafe { self.word(offset).write_volatile(word) }
    }
}

impl Vcpu {
    /// The vCPU whose frames begin at `first`, if they are mapped. The frame table says that they are the kernel's
    /// and this vCPU's, and keeps them so, all or none, until the vCPU is dropped.
    #[inline]
    pub fn at(first: Frame) -> Option<Self> {
        kmap::is_mapped(first).then_some(Self { first })
    }

    #[inline]
    pub(super) fn base(&self) -> *mut u8 {
        kmap::ptr(self.first)
    }

    #[inline]
    pub(super) fn vmcb_spa(&self) -> Spa {
        Spa(self.first.spa().0 + VMCB as u64)
    }

    #[inline]
    pub(super) fn parts(&mut self) -> Parts<'_> {
        // SAFETY: the frames are mapped and this vCPU's own, see `Vcpu`; the parts live as long as the loan of it.
        unsafe { Parts::at(self.base()) }
    }

    pub(super) fn registers<'a>(&'a mut self, cpu: &'a Cpu) -> Registers<'a> {
        let area = self.base().wrapping_add(FPU);
        Registers { extra: self.parts().extra, area, features: &cpu.features }
    }

    /// Sets reset state, also in the state page. No CPUID leaf exists.
    pub fn init(&mut self, iopm: Frame, asid: u32, root: Frame) {
        let base = self.base();
        for frame in self.first.0..self.first.0 + VCPU_FRAMES {
            kmap::zero(Frame(frame));
        }
        let (at, mxcsr) = MXCSR;
        // SAFETY: both lie in the vCPU's own frames, aligned; nobody refers to them.
        unsafe {
            base.add(FPU + at).cast::<u32>().write(mxcsr);
            reset::fill_msr_map(&mut *base.add(MSRPM).cast());
        }
        let msrpm = Spa(self.first.spa().0 + MSRPM as u64);
        let Parts { vmcb, extra, mut page, .. } = self.parts();
        reset::reset(vmcb, extra, &Setup { iopm, msrpm, asid, root });
        vmcb.control.tlb_control = TLB_FLUSH_ALL;
        state::save(&mut page, Groups::all(), vmcb, extra);
    }

    /// Replaces the CPUID table.
    ///
    /// # Errors
    /// [`Status::Malformed`] or [`Status::Range`] (more than fit); then the old one stays.
    pub fn load_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), Status> {
        if entries.len() > CpuidEntry::MAX {
            return Err(Status::Range);
        }
        if !entries.iter().all(Table::accepts) {
            return Err(Status::Malformed);
        }
        let table = self.parts().cpuid;
        table.zero();
        entries.iter().try_for_each(|entry| table.add(*entry))
    }

    /// Loads groups from the state page.
    ///
    /// # Errors
    /// [`Status::Range`] if the CPU would refuse them; nothing is loaded.
    pub fn load_groups(&mut self, groups: Groups, features: &Features) -> Result<(), Status> {
        let Parts { vmcb, extra, page, .. } = self.parts();
        state::load(&page, groups, vmcb, extra, &features.limits)
    }

    /// Fills groups of the state page. On the vCPU's own CPU, or after [`switch_out`](Self::switch_out) there.
    pub fn save_groups(&mut self, groups: Groups, cpu: &Cpu) {
        resident::sync(&mut self.registers(cpu), groups);
        let Parts { vmcb, extra, mut page, .. } = self.parts();
        state::save(&mut page, groups, vmcb, extra);
    }

    /// The message to the vmm, and the groups that go with it. `code` is what [`enter`](Self::enter) returned, or
    /// KICK or TIMER. `index` is the vCPU's in its VM.
    pub fn exit(&mut self, index: u8, code: u16, cpu: &Cpu) -> Exit {
        let Parts { vmcb, extra, page, .. } = self.parts();
        let own = code > caisson_proto::vcpu::code::INVALID;
        let control = &vmcb.control;
        let (info1, info2) = if own { (0, 0) } else { (control.info1, control.info2) };
        let next_rip = if own { 0 } else { exits::next_rip(code, info2, control.next_rip) };
        let flags = exits::flags(vmcb, extra, next_rip);
        exits::drop_fresh(vmcb, extra);
        let rcx = page.get(state::gpr(1));
        let exit = Exit {
            vcpu: index,
            context: 0,
            code,
            flags,
            info1,
            info2,
            rip: vmcb.save.rip,
            rax: vmcb.save.rax,
            rcx,
            rdx: page.get(state::gpr(2)),
            next_rip,
        };
        let groups = exits::groups(code, info1, rcx);
        if !groups.is_empty() {
            self.save_groups(groups, cpu);
        }
        exit
    }

    /// Applies the vmm's reply; `root` is the root of the view that it names.
    ///
    /// # Errors
    /// [`Status::Unsupported`] for another context than 0, else as [`state::resume`]; nothing is applied then.
    pub fn resume(&mut self, resume: &Resume, root: Frame, features: &Features) -> Result<(), Status> {
        if resume.context != 0 {
            return Err(Status::Unsupported);
        }
        let Parts { vmcb, extra, page, .. } = self.parts();
        state::resume(&page, resume, vmcb, extra, &features.limits)?;
        self.set_view(root, features);
        Ok(())
    }

    /// Chooses the nested root that the guest sees.
    pub fn set_view(&mut self, root: Frame, features: &Features) {
        let control = &mut self.parts().vmcb.control;
        if control.n_cr3 != root.spa().0 {
            control.n_cr3 = root.spa().0;
            self.flush(features);
        }
    }

    /// Makes the next entry begin without translations: after a change of nested tables, and when the vCPU comes
    /// from another CPU or another vCPU of its VM was here.
    pub fn flush(&mut self, features: &Features) {
        self.parts().vmcb.control.tlb_control = if features.flush_by_asid { TLB_FLUSH_ASID } else { TLB_FLUSH_ALL };
    }

    /// Puts the FPU, XCR0, debug addresses and TSC_AUX into this CPU, after the vCPU that was here before it gave
    /// them up. [`enter`](Self::enter) does it if it wasn't done.
    pub fn switch_in(&mut self, cpu: &Cpu) {
        resident::switch_in(&mut self.registers(cpu));
    }

    /// Takes them out of this CPU, where they are since [`switch_in`](Self::switch_in).
    pub fn switch_out(&mut self, cpu: &Cpu) {
        resident::switch_out(&mut self.registers(cpu));
    }
}
