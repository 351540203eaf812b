//! Exit codes (APM volume 2, appendix C): who answers, and which registers the vmm needs for it.

use super::events;
use super::state::Extra;
use super::vmcb::{TLB_KEEP, V_IRQ, Vmcb};
use crate::prelude::*;

/// Vectors that go to the vmm, which gives them to the guest: #DB and #AC, which would otherwise keep the CPU in
/// microcode, deaf to interrupts, if they arose while delivered; #UD, #TS, #NP, #SS and #GP, in whose frames QEMU lacks RF.
pub const REFLECTED: u32 = 1 << 1 | 1 << 6 | 0xf << 10 | 1 << 17;

/// The exit code as messages carry it. What fits no message is a refusal of the CPU's: −1 as 64 bits, on QEMU as 32.
pub const fn narrow(exit_code: u64) -> u16 {
    if exit_code < 0xf000 { exit_code as u16 } else { code::INVALID }
}

/// Whether the guest was left for an interrupt of the host's, which the kernel takes.
pub const fn is_interrupt(code: u16) -> bool {
    matches!(code, code::INTR | code::NMI | code::SMI | code::INIT)
}

/// What an instruction must be decoded with.
const DECODE: Groups = Groups::CORE.union(Groups::SEGMENTS).union(Groups::CONTROL);
/// A string instruction: bit 2 of IOIO's EXITINFO1.
const STRING: u64 = 1 << 2;
const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const TSC_AUX: u32 = 0xc000_0103;

/// The groups to fill in the state page for an exit. What isn't named can still be asked for with `VcpuRead`.
pub const fn groups(code: u16, info1: u64, rcx: u64) -> Groups {
    const LAST_DR: u16 = code::WRITE_DR0 + 15;
    const LAST_EXCEPTION: u16 = code::EXCEPTION + 31;
    match code {
        code::IOIO if info1 & STRING != 0 => DECODE,
        code::MSR => match rcx as u32 {
            EFER => Groups::CONTROL,
            PAT => Groups::PAT,
            TSC | TSC_ADJUST | TSC_AUX => Groups::TSC,
            _ => Groups::empty(),
        },
        code::NPF | code::READ_CR0..=LAST_DR | code::CR0_SEL_WRITE => DECODE,
        code::EXCEPTION..=LAST_EXCEPTION => DECODE.union(Groups::DEBUG).union(Groups::EVENTS),
        code::XSETBV => Groups::CORE.union(Groups::XCR0),
        code::IRET | code::SWINT | code::ICEBP => Groups::CORE,
        code::SHUTDOWN | code::TASK_SWITCH | code::INVALID => Groups::all(),
        _ => Groups::empty(),
    }
}

/// The flags of the exit that `vmcb` and `extra` stand at.
pub fn flags(vmcb: &Vmcb, extra: &Extra, next_rip: u64) -> ExitFlags {
    // Both have the place that they have in RFLAGS.
    let in_rflags = ExitFlags::TRAP | ExitFlags::INTERRUPTS_ON;
    let mut flags = ExitFlags::from_bits_truncate(vmcb.save.rflags as u32) & in_rflags;
    flags.set(ExitFlags::SHADOW, vmcb.control.shadow & 1 != 0);
    flags.set(ExitFlags::EVENT_PENDING, extra.event != 0);
    flags.set(ExitFlags::INJECTED, extra.fresh == 0);
    flags.set(ExitFlags::NEXT_RIP, next_rip != 0);
    flags
}

/// The next instruction's rip, or 0: IOIO has it in EXITINFO2; for other instructions newer CPUs have a field, which
/// stays 0 on those without.
pub const fn next_rip(code: u16, info2: u64, field: u64) -> u64 {
    if code == code::IOIO { info2 } else { field }
}

/// Moves the guest past an instruction that was executed for it, so long where the CPU doesn't say. Its shadow ends with it.
pub fn advance(vmcb: &mut Vmcb, length: u64) {
    let next = vmcb.control.next_rip;
    vmcb.save.rip = if next != 0 { next } else { vmcb.save.rip.wrapping_add(length) };
    vmcb.control.shadow = 0;
}

/// Before the guest is entered: the event counts as delivered from here on.
pub fn before(vmcb: &Vmcb, extra: &mut Extra) {
    extra.fresh = 0;
    extra.shadow_rip = if vmcb.control.shadow & 1 == 0 { u64::MAX } else { vmcb.save.rip };
}

/// After the guest was left for `code`: what was broken off waits for the next entry.
#[inline(always)]
pub fn after(code: u16, vmcb: &mut Vmcb, extra: &mut Extra, interrupts_by_virq: impl FnOnce() -> bool) {
    let control = &mut vmcb.control;
    if control.int_info & events::VALID | control.interrupt & V_IRQ != 0 {
        return keep_event(code, vmcb, extra, interrupts_by_virq());
    }
    (control.event, extra.event) = (0, 0);
    keep_rest(vmcb, extra);
}

/// The same where something of an event may be to be delivered yet, and always after an interrupt of the host's.
///
/// QEMU sets V_IRQ in a word that other threads change at the same time, and may lose it when an interrupt of the host's comes,
/// for which the guest is left at once. EXITINTINFO, which there shows the last delivery after its end as well, then shows none.
#[cold]
pub fn keep_event(code: u16, vmcb: &mut Vmcb, extra: &mut Extra, interrupts_by_virq: bool) {
    let info = vmcb.control.int_info;
    let lost = interrupts_by_virq && info == 0 && events::vector_of_interrupt(extra.event).is_some();
    let broken_off = info & events::VALID != 0 && !matches!(code, code::INVALID | code::SHUTDOWN);
    let kept = if vmcb.take_virq() || lost { extra.event } else { 0 };
    extra.event = if broken_off { events::again(info, extra.event, interrupts_by_virq) } else { kept };
    vmcb.set_event(extra.event, interrupts_by_virq);
    keep_rest(vmcb, extra);
}

/// A flush is done by then. A shadow that the guest was entered with holds while it stands at the same instruction; QEMU
/// forgets it.
#[inline(always)]
fn keep_rest(vmcb: &mut Vmcb, extra: &Extra) {
    vmcb.control.tlb_control = TLB_KEEP;
    if vmcb.save.rip == extra.shadow_rip {
        vmcb.control.shadow |= 1;
    }
}

/// Forgets an event of the vmm's that the guest was never entered with: the vmm is told that it wasn't injected.
pub fn drop_fresh(vmcb: &mut Vmcb, extra: &mut Extra) {
    if extra.fresh == 1 {
        extra.fresh = 0;
        extra.event = 0;
        vmcb.take_virq();
        vmcb.control.event = 0;
    }
}
