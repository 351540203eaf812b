//! The virtual machine control block: APM volume 2, appendix B; `tests/vmcb.rs` checks where things lie.

use super::events;
use crate::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The intercept of the moment at which a virtual interrupt can be taken.
const VINTR: u32 = 1 << 4;
/// The intercept of IRET.
const IRET: u32 = 1 << 20;

/// Virtual interrupts, in the quadword at 0x060: one is pending, and its vector.
pub const V_IRQ: u64 = 1 << 8;
const VECTOR_SHIFT: u32 = 32;
/// There, too: one is pending, of the highest priority, whatever the TPR says.
const PENDING: u64 = V_IRQ | 0xf << 16 | 1 << 20;
/// There, too: the guest's IF masks virtual interrupts only; the host's IF at VMRUN masks physical ones.
pub const MASKING: u64 = 1 << 24;

/// Nested paging is on: bit 0 of the quadword at 0x090.
pub const NESTED_PAGING: u64 = 1;
/// TLB_CONTROL: leave the TLB alone.
pub const TLB_KEEP: u32 = 0;
/// TLB_CONTROL: flush everything.
pub const TLB_FLUSH_ALL: u32 = 1;
/// TLB_CONTROL: flush this ASID (CPUID 8000_000A EDX\[6\]).
pub const TLB_FLUSH_ASID: u32 = 3;
/// CR8 in either half of the control-register intercepts.
pub const CR8: u32 = 1 << 8;

/// The control area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Control {
    /// Control-register intercepts: reads in bits 15:0, writes in bits 31:16.
    pub cr: u32,
    /// Debug-register intercepts: reads in bits 15:0, writes in bits 31:16.
    pub dr: u32,
    /// Exception intercepts, a bit a vector.
    pub exceptions: u32,
    /// Intercepts of instructions and events, a bit each, low word first.
    pub intercepts: [u32; 2],
    reserved_014: [u32; 11],
    /// I/O permission map: physical address of three frames.
    pub iopm: u64,
    /// MSR permission map: physical address of two frames.
    pub msrpm: u64,
    /// Added to the TSC that the guest reads.
    pub tsc_offset: u64,
    /// Address space id; never 0.
    pub asid: u32,
    /// What VMRUN does to the TLB.
    pub tlb_control: u32,
    /// Virtual interrupts, with the guest's TPR in bits 7:0.
    pub interrupt: u64,
    /// Bit 0: interrupt shadow.
    pub shadow: u64,
    /// Why the guest was left.
    pub exit_code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// The event whose delivery the exit broke off.
    pub int_info: u64,
    /// See [`NESTED_PAGING`].
    pub nested: u64,
    reserved_098: [u64; 2],
    /// The event to inject.
    pub event: u64,
    /// Root of the nested page tables.
    pub n_cr3: u64,
    reserved_0b8: [u64; 2],
    /// The next instruction (CPUID 8000_000A EDX\[3\]).
    pub next_rip: u64,
    reserved_0d0: [u64; 102],
}

/// A VMCB: one frame.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Vmcb {
    /// What the host wants, and how the guest was left.
    pub control: Control,
    /// The guest's registers.
    pub save: Save,
    reserved_670: [u64; 306],
}

const _: () = assert!(size_of::<Vmcb>() == 4096);

impl Vmcb {
    /// Has the CPU inject an event at the next entry, or none. `by_virq`: an interrupt goes in as V_IRQ, unless that waits
    /// for a moment at which one can be taken.
    pub fn set_event(&mut self, event: u64, by_virq: bool) {
        self.control.event = event;
        if self.control.intercepts[0] & VINTR != 0 {
            self.control.interrupt |= PENDING;
        } else if by_virq && let Some(vector) = events::vector_of_interrupt(event) {
            self.control.event = 0;
            self.control.interrupt = MASKING | PENDING | vector << VECTOR_SHIFT;
        }
    }

    /// Whether the guest wasn't given yet what [`set_event`](Self::set_event) put in as V_IRQ. It is out then.
    pub fn take_virq(&mut self) -> bool {
        let waits = self.control.interrupt & V_IRQ != 0 && self.control.intercepts[0] & VINTR == 0;
        if waits {
            self.control.interrupt &= !PENDING;
        }
        waits
    }

    /// Asks for VINTR as soon as the guest can take an interrupt, or doesn't, and for its IRETs, or doesn't.
    pub fn set_window(&mut self, open: bool, iret: bool) {
        self.control.intercepts[0] = self.control.intercepts[0] & !IRET | (u32::from(iret) * IRET);
        if open {
            self.control.interrupt |= PENDING;
            self.control.intercepts[0] |= VINTR;
        } else if self.control.intercepts[0] & VINTR != 0 {
            self.control.interrupt &= !PENDING;
            self.control.intercepts[0] &= !VINTR;
        }
    }
}
