//! Groups of registers between the state page and the VMCB.
//!
//! The kernel checks only what would do harm outside the vCPU: a value that faults when the kernel itself loads it. What
//! VMRUN refuses (APM volume 2, section 15.5.1, "Canonicalization and Consistency Checks") it refuses by itself; the
//! vmm then gets [`INVALID`](caisson_proto::vcpu::code::INVALID), and nobody else suffers.

use super::{events, vmcb::Vmcb};
use crate::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute_mut};

/// What this machine accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bits of XCR0 that may be set.
    pub xcr0: u64,
    /// Where it differs from silicon.
    pub quirks: Quirks,
}

/// What the kernel keeps of a vCPU beside its VMCB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extra {
    /// The event of the next entry or, while the guest runs, of the last.
    pub event: u64,
    /// 1 while `event` is the vmm's and was not yet entered with.
    pub fresh: u64,
    /// The guest's rip when it was entered in an interrupt shadow, else `u64::MAX`.
    pub shadow_rip: u64,
    /// The guest's XCR0, while it isn't in the CPU.
    pub xcr0: u64,
    /// The guest's TSC_AUX.
    pub tsc_aux: u64,
    /// The guest's EFER.LME. The CPU has it only while paging is on.
    pub lme: u64,
    /// The guest's debug addresses, while they aren't in the CPU.
    pub dr: [u64; 4],
    /// [`Groups`] that were loaded here and that the CPU must be given at the next entry, or [`ABSENT`].
    pub reload: u64,
}

/// [`Extra::reload`] of a vCPU whose registers are in no CPU: none of [`RESIDENT`] nor the FPU's.
pub const ABSENT: u64 = u64::MAX;

/// Groups whose registers the world switch leaves in the CPU.
pub const RESIDENT: Groups = Groups::DEBUG.union(Groups::TSC).union(Groups::XCR0);

/// The state page, shared with the vmm, which may write it at any time.
pub trait StatePage {
    /// The word at this offset in [`VcpuState`].
    fn get(&self, offset: usize) -> u64;
    /// Writes it.
    fn set(&mut self, offset: usize, word: u64);
}

/// Offset of a general-purpose register, by its encoding.
pub const fn gpr(number: usize) -> usize {
    offset_of!(VcpuState, gpr) + number % 16 * 8
}

/// Where the save area is in the state page.
const SAVE: usize = offset_of!(VcpuState, save);
/// The word of it that has CPL, and where.
const CPL: usize = offset_of!(Save, reserved_0c8);
const CPL_SHIFT: usize = 8 * (offset_of!(Save, cpl) - CPL);

/// EFER.SVME: set for the CPU, hidden from the vmm.
pub const SVME: u64 = 1 << 12;
const LME: u64 = 1 << 8;
/// The intercept of writes to CR0 that change more than TS and MP.
pub const CR0_WRITES: u32 = 1 << 5;
/// CR0.PG.
const PAGING: u64 = 1 << 31;
/// Bits of RFLAGS that exist: 21:16, 14, 11:6, 4, 2, 0. Bit 1 is always set.
const RFLAGS: u64 = 0x003f_7fd5;

/// The table of what lies where: calls with each word's offset in the state page and its place here. CPL, which isn't
/// a word here, is left out.
fn each(groups: Groups, vmcb: &mut Vmcb, extra: &mut Extra, mut visit: impl FnMut(usize, &mut u64)) {
    let (save, control) = (&mut vmcb.save, &mut vmcb.control);
    macro_rules! words {
        ($place:ident in $type:ident at $at:expr => $($group:ident: $($field:ident)+;)*) => { $(
            if groups.contains(Groups::$group) { $( visit($at + offset_of!($type, $field), &mut $place.$field); )+ }
        )* };
    }
    words! { save in Save at SAVE =>
        CORE: rip rflags;
        CONTROL: cr0 cr2 cr3 cr4 efer;
        DEBUG: dr6 dr7;
        SYSCALL: star lstar cstar sfmask kernel_gs_base sysenter_cs sysenter_esp sysenter_eip;
        PAT: pat;
    }
    words! { control in VcpuState at 0 => EVENTS: shadow; TSC: tsc_offset; }
    words! { extra in VcpuState at 0 => TSC: tsc_aux; XCR0: xcr0; }
    if groups.contains(Groups::CORE) {
        visit(gpr(0), &mut save.rax);
        visit(gpr(4), &mut save.rsp);
    }
    if groups.contains(Groups::DEBUG) {
        let addresses = extra.dr.iter_mut().enumerate();
        addresses.for_each(|(at, address)| visit(offset_of!(VcpuState, dr) + at * 8, address));
    }
    let words: &mut [u64; size_of::<Save>() / 8] = transmute_mut!(save);
    for (at, [head, base]) in words.as_chunks_mut().0.iter_mut().enumerate().take(offset_of!(Save, reserved_0a0) / 16) {
        // The seventh and the ninth are gdtr and idtr.
        if groups.contains(if matches!(at, 6 | 8) { Groups::TABLES } else { Groups::SEGMENTS }) {
            visit(SAVE + at * 16, head);
            visit(SAVE + at * 16 + 8, base);
        }
    }
}

/// Whether XSETBV accepts this value (APM volume 2, section 11.5.2): x87 always, and AVX with SSE only.
const fn check_xcr0(xcr0: u64, mask: u64) -> bool {
    xcr0 & 1 == 1 && xcr0 & !mask == 0 && (xcr0 & 1 << 2 == 0 || xcr0 & 1 << 1 != 0)
}

/// Loads groups from the state page. What doesn't fit a register is cut off.
///
/// # Errors
/// [`Status::Range`] for an XCR0 that XSETBV would refuse; nothing is loaded then.
pub fn load(page: &impl StatePage, groups: Groups, vmcb: &mut Vmcb, extra: &mut Extra, limits: &Limits) -> Outcome {
    // Read once: the vmm may change it after the check.
    let xcr0 = if groups.contains(Groups::XCR0) { page.get(offset_of!(VcpuState, xcr0)) } else { extra.xcr0 };
    ensure(!groups.contains(Groups::XCR0) || check_xcr0(xcr0, limits.xcr0), Status::Range)?;
    each(groups, vmcb, extra, |offset, word| *word = page.get(offset));
    if groups.contains(Groups::CORE) {
        vmcb.save.cpl = (page.get(SAVE + CPL) >> CPL_SHIFT) as u8 & 3;
        vmcb.save.rflags = vmcb.save.rflags & RFLAGS | 2;
    }
    // At an exit from a guest with LME and neither paging nor CR4.PAE, QEMU 7.2 leaves the host without paging. The bit
    // means nothing until paging is on, and that is the vmm's to switch, where writes to CR0 are intercepted.
    if groups.contains(Groups::CONTROL) {
        extra.lme = vmcb.save.efer & LME;
        let on = vmcb.save.cr0 & PAGING != 0 || vmcb.control.intercepts[0] & CR0_WRITES == 0;
        vmcb.save.efer ^= if on { 0 } else { extra.lme };
    }
    vmcb.save.efer |= SVME;
    vmcb.control.shadow &= 1;
    extra.xcr0 = xcr0;
    extra.tsc_aux &= u64::from(u32::MAX);
    extra.reload |= u64::from(groups.intersection(RESIDENT).bits());
    Ok(())
}

/// Applies a vmm's reply, its context and view excepted.
///
/// # Errors
/// [`Status::Busy`] if it injects while another event waits, and not in its place; else as [`events::check`] and
/// [`load`]. Nothing is changed then.
pub fn resume(page: &impl StatePage, resume: &Resume, vmcb: &mut Vmcb, extra: &mut Extra, limits: &Limits) -> Outcome {
    let any = resume.inject | extra.event != 0;
    if any {
        ensure(resume.inject == 0 || extra.event == 0 || resume.replace, Status::Busy)?;
        events::check(resume.inject, limits.quirks.few_error_codes)?;
    }
    if !resume.groups.is_empty() {
        load(page, resume.groups, vmcb, extra, limits)?;
    }
    if !resume.groups.contains(Groups::CORE) {
        (vmcb.save.rip, vmcb.save.rax) = (resume.rip, resume.rax);
    }
    if resume.clear_shadow {
        vmcb.control.shadow = 0;
    }
    vmcb.set_window(resume.window, resume.iret);
    if any {
        if resume.inject != 0 {
            (extra.event, extra.fresh) = (resume.inject, 1);
        }
        vmcb.set_event(extra.event, limits.quirks.interrupts_by_virq);
    }
    Ok(())
}

/// Fills groups of the state page. The registers of [`RESIDENT`] are taken from `extra`.
pub fn save(page: &mut impl StatePage, groups: Groups, vmcb: &mut Vmcb, extra: &mut Extra) {
    each(groups, vmcb, extra, |offset, word| page.set(offset, *word));
    if groups.contains(Groups::CORE) {
        page.set(SAVE + CPL, u64::from(vmcb.save.cpl) << CPL_SHIFT);
    }
    if groups.contains(Groups::CONTROL) {
        page.set(SAVE + offset_of!(Save, efer), vmcb.save.efer & !SVME | extra.lme);
    }
    if groups.contains(Groups::EVENTS) {
        page.set(offset_of!(VcpuState, event), extra.event);
    }
}
