//! The virtual machine control block: APM volume 2, appendix B. Its layout is checked at compile time.

use core::mem::offset_of;

use caisson_proto::vcpu::Segment;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags::bitflags! {
    /// Intercepts of instructions and events: the words at 0x00c (bits 31:0) and 0x010 (bits 63:32). Those that are
    /// used; not RDTSC, RDTSCP, PAUSE, INVLPG and IRET, which are the guest's own.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercepts: u64 {
        /// Physical interrupts.
        const INTR = 1 << 0;
        /// Physical NMIs.
        const NMI = 1 << 1;
        /// SMIs.
        const SMI = 1 << 2;
        /// INIT signals.
        const INIT = 1 << 3;
        /// The moment at which a virtual interrupt can be taken.
        const VINTR = 1 << 4;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// INVD.
        const INVD = 1 << 22;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Port accesses that the I/O permission map names.
        const IOIO = 1 << 27;
        /// MSR accesses that the MSR permission map names.
        const MSR = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR freeze.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown.
        const SHUTDOWN = 1 << 31;
        /// VMRUN; the CPU refuses a VMCB without it.
        const VMRUN = 1 << 32;
        /// VMMCALL.
        const VMMCALL = 1 << 33;
        /// VMLOAD.
        const VMLOAD = 1 << 34;
        /// VMSAVE.
        const VMSAVE = 1 << 35;
        /// STGI.
        const STGI = 1 << 36;
        /// CLGI.
        const CLGI = 1 << 37;
        /// SKINIT.
        const SKINIT = 1 << 38;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 41;
        /// MONITOR and MONITORX.
        const MONITOR = 1 << 42;
        /// MWAIT and MWAITX.
        const MWAIT = 1 << 43;
        /// MWAIT with an armed monitor.
        const MWAIT_ARMED = 1 << 44;
        /// XSETBV.
        const XSETBV = 1 << 45;
    }
}

bitflags::bitflags! {
    /// Virtual interrupts: the quadword at 0x060.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VirtualInterrupt: u64 {
        /// An interrupt is pending.
        const PENDING = 1 << 8;
        /// The highest priority.
        const PRIORITY = 0xf << 16;
        /// Priority and TPR aren't compared.
        const IGNORE_TPR = 1 << 20;
        /// The guest's IF masks virtual interrupts only; the host's IF at VMRUN masks physical ones.
        const MASKING = 1 << 24;
    }
}

/// Nested paging is on: bit 0 of the quadword at 0x090.
pub const NESTED_PAGING: u64 = 1;
/// TLB_CONTROL: leave the TLB alone.
pub const TLB_KEEP: u32 = 0;
/// TLB_CONTROL: flush everything.
pub const TLB_FLUSH_ALL: u32 = 1;
/// TLB_CONTROL: flush this ASID (CPUID 8000_000A EDX[6]).
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
    /// [`Intercepts`], low word first.
    pub intercepts: [u32; 2],
    reserved_014: [u32; 10],
    /// PAUSE filter threshold (bits 15:0) and count (bits 31:16).
    pub pause: u32,
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
    /// [`VirtualInterrupt`], with the guest's TPR in bits 7:0.
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
    /// Guest-physical address of the AVIC's registers.
    pub avic_bar: u64,
    /// Guest-physical address of the GHCB.
    pub ghcb: u64,
    /// The event to inject.
    pub event: u64,
    /// Root of the nested page tables.
    pub n_cr3: u64,
    /// Virtualisation of LBRs, VMLOAD and VMSAVE.
    pub virtualize: u64,
    /// What the CPU may keep from the last VMRUN; 0 for nothing.
    pub clean: u64,
    /// The next instruction (CPUID 8000_000A EDX[3]).
    pub next_rip: u64,
    /// How many instruction bytes follow (CPUID 8000_000A EDX[7]), and they.
    pub fetched: [u8; 16],
    reserved_0e0: [u64; 5],
    /// Physical address of the encrypted save area.
    pub vmsa: u64,
    reserved_110: [u64; 94],
}

/// The state save area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Save {
    /// es cs ss ds fs gs.
    pub segments: [Segment; 6],
    /// Global descriptor table.
    pub gdtr: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Interrupt descriptor table.
    pub idtr: Segment,
    /// Task register.
    pub tr: Segment,
    reserved_0a0: [u8; 43],
    /// Current privilege level.
    pub cpl: u8,
    reserved_0cc: u32,
    /// Extended features.
    pub efer: u64,
    reserved_0d8: [u64; 14],
    /// Control register 4.
    pub cr4: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Debug control.
    pub dr7: u64,
    /// Debug status.
    pub dr6: u64,
    /// Flags.
    pub rflags: u64,
    /// Instruction pointer.
    pub rip: u64,
    reserved_180: [u64; 11],
    /// Stack pointer.
    pub rsp: u64,
    reserved_1e0: [u64; 3],
    /// rax.
    pub rax: u64,
    /// MSR C000_0081.
    pub star: u64,
    /// MSR C000_0082.
    pub lstar: u64,
    /// MSR C000_0083.
    pub cstar: u64,
    /// MSR C000_0084.
    pub sfmask: u64,
    /// MSR C000_0102.
    pub kernel_gs_base: u64,
    /// MSR 174.
    pub sysenter_cs: u64,
    /// MSR 175.
    pub sysenter_esp: u64,
    /// MSR 176.
    pub sysenter_eip: u64,
    /// Page-fault address.
    pub cr2: u64,
    reserved_248: [u64; 4],
    /// The guest's PAT.
    pub pat: u64,
    reserved_270: [u64; 306],
}

/// A VMCB: one frame.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Vmcb {
    /// What the host wants, and how the guest was left.
    pub control: Control,
    /// The guest's registers.
    pub save: Save,
}

macro_rules! at {
    ($($type:ident . $field:ident = $offset:literal;)*) => { $(
        const _: () = assert!(offset_of!($type, $field) == $offset);
    )* };
}

at! {
    Control.exceptions = 0x08; Control.intercepts = 0x0c; Control.pause = 0x3c; Control.iopm = 0x40;
    Control.asid = 0x58; Control.tlb_control = 0x5c; Control.interrupt = 0x60; Control.exit_code = 0x70;
    Control.int_info = 0x88; Control.nested = 0x90; Control.ghcb = 0xa0; Control.event = 0xa8;
    Control.n_cr3 = 0xb0; Control.clean = 0xc0; Control.next_rip = 0xc8; Control.fetched = 0xd0;
    Control.vmsa = 0x108;
    Save.gdtr = 0x60; Save.ldtr = 0x70; Save.idtr = 0x80; Save.tr = 0x90; Save.cpl = 0xcb; Save.efer = 0xd0;
    Save.cr4 = 0x148; Save.cr0 = 0x158; Save.rflags = 0x170; Save.rip = 0x178; Save.rsp = 0x1d8;
    Save.rax = 0x1f8; Save.star = 0x200; Save.sysenter_eip = 0x238; Save.cr2 = 0x240; Save.pat = 0x268;
    Vmcb.save = 0x400;
}
const _: () = assert!(size_of::<Vmcb>() == 4096);

impl Vmcb {
    /// Sets what is intercepted.
    pub fn set_intercepts(&mut self, intercepts: Intercepts) {
        self.control.intercepts = [intercepts.bits() as u32, (intercepts.bits() >> 32) as u32];
    }

    /// Asks for VINTR as soon as the guest can take an interrupt, or doesn't.
    #[inline]
    pub fn set_window(&mut self, open: bool) {
        const IRQ: u64 =
            VirtualInterrupt::PENDING.union(VirtualInterrupt::PRIORITY).union(VirtualInterrupt::IGNORE_TPR).bits();
        const INTERCEPT: u32 = Intercepts::VINTR.bits() as u32;
        if open {
            self.control.interrupt |= IRQ;
            self.control.intercepts[0] |= INTERCEPT;
        } else if self.control.intercepts[0] & INTERCEPT != 0 {
            self.control.interrupt &= !IRQ;
            self.control.intercepts[0] &= !INTERCEPT;
        }
    }

    /// Whether the guest's code is 64-bit code: EFER.LMA and CS.L.
    pub fn long_code(&self) -> bool {
        is_long_code(self.save.efer, self.save.segments[1].attributes)
    }
}

/// Whether code is 64-bit code, by EFER and the attributes of CS.
pub const fn is_long_code(efer: u64, cs_attributes: u16) -> bool {
    efer & 1 << 10 != 0 && cs_attributes & 1 << 9 != 0
}
