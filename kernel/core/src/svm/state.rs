//! Groups of registers between the state page and the VMCB, and the check of what a vmm wants to load: whatever
//! VMRUN refuses (APM volume 2, section 15.5.1, "Canonicalization and Consistency Checks"; 15.25.4 for the PAT) is
//! refused here, before anything is changed. A guest that stops the world switch can then only be the guest's doing.

use core::mem::offset_of;

use caisson_proto::abi::Status;
use caisson_proto::vcpu::{Groups, Resume, Segment, VcpuState};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::events;
use super::vmcb::{Vmcb, is_long_code};

/// What this machine accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bits of CR4 that may be set.
    pub cr4: u64,
    /// Bits of EFER that may be set.
    pub efer: u64,
    /// Bits of XCR0 that may be set.
    pub xcr0: u64,
    /// Physical address bits.
    pub phys_bits: u32,
    /// See [`Quirks`](crate::boot::Quirks).
    pub few_error_codes: bool,
    /// See [`Quirks`](crate::boot::Quirks).
    pub virq_reported_as_exception: bool,
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
    /// The guest's debug addresses, while they aren't in the CPU.
    pub dr: [u64; 4],
    /// [`Groups`] that were loaded here and that the CPU must be given at the next entry, or [`ABSENT`].
    pub reload: u64,
}

/// [`Extra::reload`] of a vCPU whose registers are in no CPU: none of [`RESIDENT`] nor the FPU's.
pub const ABSENT: u64 = u64::MAX;

/// Groups whose registers the world switch leaves in the CPU.
pub const RESIDENT: Groups = Groups::DEBUG.union(Groups::TSC).union(Groups::XCR0);

/// The state page, shared with the vmm, which may write it at any time: each word is read once.
pub trait StatePage {
    /// The word at this offset in [`VcpuState`].
    fn get(&self, offset: usize) -> u64;
    /// Writes it.
    fn set(&mut self, offset: usize, word: u64);
}

macro_rules! word {
    ($($path:tt)+) => { offset_of!(VcpuState, $($path)+) };
}

/// The registers that are copied as they are, in both directions.
macro_rules! plain {
    ($words:ident, $segments:ident) => {
        $words!(CORE: rip);
        $segments!(SEGMENTS: ldtr tr);
        $segments!(TABLES: gdtr idtr);
        $words!(CONTROL: cr2);
        $words!(SYSCALL: star lstar cstar sfmask kernel_gs_base sysenter_cs sysenter_esp sysenter_eip);
    };
}

/// Offset of a general-purpose register, by its encoding.
pub const fn gpr(number: usize) -> usize {
    offset_of!(VcpuState, gpr) + number % 16 * 8
}

const SEGMENTS: usize = word!(segments);
const DR: usize = word!(dr);
/// EFER.SVME: set for the CPU, hidden from the vmm.
pub const SVME: u64 = 1 << 12;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;
const PG: u64 = 1 << 31;
const PE: u64 = 1;
const CACHE_DISABLE: u64 = 1 << 30;
const NOT_WRITE_THROUGH: u64 = 1 << 29;
const PAE: u64 = 1 << 5;
const CS_D: u16 = 1 << 10;
/// Bits of RFLAGS that exist: 21:16, 14, 11:6, 4, 2, 0. Bit 1 is always set.
const RFLAGS: u64 = 0x003f_7fd5;

fn segment(page: &impl StatePage, offset: usize) -> Segment {
    let head = page.get(offset);
    Segment {
        selector: head as u16,
        attributes: (head >> 16) as u16 & 0xfff,
        limit: (head >> 32) as u32,
        base: page.get(offset + 8),
    }
}

fn put_segment(page: &mut impl StatePage, offset: usize, segment: &Segment) {
    let head = u64::from(segment.selector) | u64::from(segment.attributes) << 16 | u64::from(segment.limit) << 32;
    page.set(offset, head);
    page.set(offset + 8, segment.base);
}

const fn check_control(cr0: u64, cr3: u64, cr4: u64, efer: u64, cs: u16, limits: &Limits) -> bool {
    let long = efer & LME != 0 && cr0 & PG != 0;
    let known = cr0 >> 32 == 0 && cr3 >> limits.phys_bits == 0;
    let allowed = cr4 & !limits.cr4 == 0 && efer & !limits.efer == 0;
    let cache = cr0 & NOT_WRITE_THROUGH == 0 || cr0 & CACHE_DISABLE != 0;
    let active = (efer & LMA != 0) == long;
    let code = !(is_long_code(efer, cs) && cs & CS_D != 0);
    known && allowed && cache && active && code && (!long || cr4 & PAE != 0 && cr0 & PE != 0)
}

/// Whether every byte of a PAT is a memory type (APM volume 2, section 7.8.1).
const fn check_pat(pat: u64) -> bool {
    let mut at = 0;
    while at < 64 {
        if !matches!(pat >> at & 0xff, 0 | 1 | 4..=7) {
            return false;
        }
        at += 8;
    }
    true
}

/// Whether XSETBV accepts this value (APM volume 2, section 11.5.2).
const fn check_xcr0(xcr0: u64, mask: u64) -> bool {
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const BOUNDS: u64 = 3 << 3;
    const AVX512: u64 = 7 << 5;
    const TILES: u64 = 3 << 17;
    xcr0 & 1 == 1
        && xcr0 & !mask == 0
        && (xcr0 & AVX == 0 || xcr0 & SSE != 0)
        && (xcr0 & BOUNDS == 0 || xcr0 & BOUNDS == BOUNDS)
        && (xcr0 & AVX512 == 0 || xcr0 & (AVX512 | AVX) == AVX512 | AVX)
        && (xcr0 & TILES == 0 || xcr0 & TILES == TILES)
}

/// Values that were read once, checked, and are to be written: those of the groups named, else what is there now.
struct Plan {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    cs: Segment,
    cpl: u64,
    dr6: u64,
    dr7: u64,
    pat: u64,
    tsc_aux: u64,
    xcr0: u64,
}

impl Plan {
    #[inline]
    fn read(page: &impl StatePage, groups: Groups, vmcb: &Vmcb, extra: &Extra, limits: &Limits) -> Option<Self> {
        let save = &vmcb.save;
        let pick = |group: Groups, offset: usize, present: u64| {
            if groups.contains(group) { page.get(offset) } else { present }
        };
        let efer = if groups.contains(Groups::CONTROL) { page.get(word!(efer)) } else { save.efer & !SVME };
        let cs = if groups.contains(Groups::SEGMENTS) {
            segment(page, SEGMENTS + size_of::<Segment>())
        } else {
            save.segments[1]
        };
        let plan = Self {
            cr0: pick(Groups::CONTROL, word!(cr0), save.cr0),
            cr3: pick(Groups::CONTROL, word!(cr3), save.cr3),
            cr4: pick(Groups::CONTROL, word!(cr4), save.cr4),
            efer,
            cs,
            cpl: pick(Groups::CORE, word!(cpl), save.cpl.into()),
            dr6: pick(Groups::DEBUG, word!(dr6), save.dr6),
            dr7: pick(Groups::DEBUG, word!(dr7), save.dr7),
            pat: pick(Groups::PAT, word!(pat), save.pat),
            tsc_aux: pick(Groups::TSC, word!(tsc_aux), extra.tsc_aux),
            xcr0: pick(Groups::XCR0, word!(xcr0), extra.xcr0),
        };
        // What the guest itself did to its control registers isn't judged again unless the vmm touches them.
        let control = !groups.intersects(Groups::CONTROL.union(Groups::SEGMENTS))
            || check_control(plan.cr0, plan.cr3, plan.cr4, plan.efer, plan.cs.attributes, limits);
        let good = control
            && plan.cpl <= 3
            && (plan.dr6 | plan.dr7 | plan.tsc_aux) >> 32 == 0
            && check_pat(plan.pat)
            && (!groups.contains(Groups::XCR0) || check_xcr0(plan.xcr0, limits.xcr0));
        good.then_some(plan)
    }

    #[inline]
    fn write(&self, page: &impl StatePage, groups: Groups, vmcb: &mut Vmcb, extra: &mut Extra) {
        macro_rules! load {
            ($group:ident: $($field:ident)+) => {
                if groups.contains(Groups::$group) { $( vmcb.save.$field = page.get(word!($field)); )+ }
            };
        }
        macro_rules! load_segments {
            ($group:ident: $($field:ident)+) => {
                if groups.contains(Groups::$group) { $( vmcb.save.$field = segment(page, word!($field)); )+ }
            };
        }
        plain!(load, load_segments);
        let save = &mut vmcb.save;
        if groups.contains(Groups::CORE) {
            save.rax = page.get(gpr(0));
            save.rsp = page.get(gpr(4));
            save.rflags = page.get(word!(rflags)) & RFLAGS | 2;
            save.cpl = self.cpl as u8;
        }
        if groups.contains(Groups::SEGMENTS) {
            for (at, target) in save.segments.iter_mut().enumerate() {
                *target = segment(page, SEGMENTS + at * size_of::<Segment>());
            }
            save.segments[1] = self.cs;
        }
        if groups.contains(Groups::DEBUG) {
            for (at, target) in extra.dr.iter_mut().enumerate() {
                *target = page.get(DR + at * 8);
            }
        }
        (save.cr0, save.cr3, save.cr4, save.efer) = (self.cr0, self.cr3, self.cr4, self.efer | SVME);
        (save.dr6, save.dr7, save.pat) = (self.dr6, self.dr7, self.pat);
        if groups.contains(Groups::EVENTS) {
            vmcb.control.shadow = page.get(word!(shadow)) & 1;
        }
        if groups.contains(Groups::TSC) {
            vmcb.control.tsc_offset = page.get(word!(tsc_offset));
        }
        (extra.tsc_aux, extra.xcr0) = (self.tsc_aux, self.xcr0);
        extra.reload |= u64::from(groups.intersection(RESIDENT).bits());
    }
}

/// Loads groups from the state page.
///
/// # Errors
/// [`Status::Range`] if the CPU would refuse them; nothing is loaded then.
pub fn load(
    page: &impl StatePage,
    groups: Groups,
    vmcb: &mut Vmcb,
    extra: &mut Extra,
    limits: &Limits,
) -> Result<(), Status> {
    let Some(plan) = Plan::read(page, groups, vmcb, extra, limits) else { return Err(Status::Range) };
    plan.write(page, groups, vmcb, extra);
    Ok(())
}

/// Applies a vmm's reply, its context and view excepted.
///
/// # Errors
/// [`Status::Busy`] if it injects while another event waits; [`Status::Range`] if the CPU would refuse the event or
/// the groups; else as [`events::check`]. Nothing is changed then.
#[inline]
pub fn resume(
    page: &impl StatePage,
    resume: &Resume,
    vmcb: &mut Vmcb,
    extra: &mut Extra,
    limits: &Limits,
) -> Result<(), Status> {
    if resume.inject != 0 && extra.event != 0 {
        return Err(Status::Busy);
    }
    if resume.groups.is_empty() {
        if resume.inject != 0 {
            let event = events::check(resume.inject, vmcb.long_code(), limits.few_error_codes)?;
            inject(event, vmcb, extra);
        }
    } else {
        let Some(plan) = Plan::read(page, resume.groups, vmcb, extra, limits) else {
            return Err(Status::Range);
        };
        let long_code = is_long_code(plan.efer, plan.cs.attributes);
        let event = events::check(resume.inject, long_code, limits.few_error_codes)?;
        plan.write(page, resume.groups, vmcb, extra);
        inject(event, vmcb, extra);
    }
    if !resume.groups.contains(Groups::CORE) {
        vmcb.save.rip = resume.rip;
        vmcb.save.rax = resume.rax;
    }
    if resume.clear_shadow {
        vmcb.control.shadow = 0;
    }
    vmcb.set_window(resume.window);
    Ok(())
}

fn inject(event: u64, vmcb: &mut Vmcb, extra: &mut Extra) {
    if event != 0 {
        extra.event = event;
        extra.fresh = 1;
        vmcb.control.event = event;
    }
}

/// Fills groups of the state page. The registers of [`RESIDENT`] are taken from `extra`.
pub fn save(page: &mut impl StatePage, groups: Groups, vmcb: &Vmcb, extra: &Extra) {
    macro_rules! store {
        ($group:ident: $($field:ident)+) => {
            if groups.contains(Groups::$group) { $( page.set(word!($field), vmcb.save.$field); )+ }
        };
    }
    macro_rules! store_segments {
        ($group:ident: $($field:ident)+) => {
            if groups.contains(Groups::$group) { $( put_segment(page, word!($field), &vmcb.save.$field); )+ }
        };
    }
    plain!(store, store_segments);
    store!(CORE: rflags);
    store!(CONTROL: cr0 cr3 cr4);
    store!(DEBUG: dr6 dr7);
    store!(PAT: pat);
    let (save, control) = (&vmcb.save, &vmcb.control);
    if groups.contains(Groups::CORE) {
        page.set(gpr(0), save.rax);
        page.set(gpr(4), save.rsp);
        page.set(word!(cpl), save.cpl.into());
    }
    if groups.contains(Groups::SEGMENTS) {
        for (at, segment) in save.segments.iter().enumerate() {
            put_segment(page, SEGMENTS + at * size_of::<Segment>(), segment);
        }
    }
    if groups.contains(Groups::CONTROL) {
        page.set(word!(efer), save.efer & !SVME);
    }
    if groups.contains(Groups::DEBUG) {
        for (at, address) in extra.dr.iter().enumerate() {
            page.set(DR + at * 8, *address);
        }
    }
    if groups.contains(Groups::EVENTS) {
        page.set(word!(shadow), control.shadow & 1);
    }
    if groups.contains(Groups::TSC) {
        page.set(word!(tsc_offset), control.tsc_offset);
        page.set(word!(tsc_aux), extra.tsc_aux);
    }
    if groups.contains(Groups::XCR0) {
        page.set(word!(xcr0), extra.xcr0);
    }
}
