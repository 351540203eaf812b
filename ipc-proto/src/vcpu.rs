//! A vCPU seen by its vmm: exits, the reply that resumes it, and the state page.
//!
//! A VM exit is a call from the vCPU to its vmm. The words carry what every exit needs; further registers are in
//! the vCPU's state page ([`VcpuState`], mapped at [`crate::layout::VCPU_STATE`]), in groups: the kernel fills just
//! the groups that the exit code needs (see `kernel/core`), and loads just those that the reply names.
//! The general-purpose registers are always current there: the world switch itself uses that page.

bitflags::bitflags! {
    /// Groups of registers in the state page.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Groups: u32 {
        /// rax, rsp, rip, rflags and cpl. The other general-purpose registers need no group.
        const CORE = 1 << 0;
        /// es cs ss ds fs gs ldtr tr, with hidden parts.
        const SEGMENTS = 1 << 1;
        /// gdtr and idtr.
        const TABLES = 1 << 2;
        /// cr0 cr2 cr3 cr4 efer.
        const CONTROL = 1 << 3;
        /// dr6 and dr7.
        const DEBUG = 1 << 4;
        /// STAR LSTAR CSTAR SFMASK KernelGsBase and the SYSENTER registers.
        const SYSCALL = 1 << 5;
        /// The guest's PAT.
        const PAT = 1 << 6;
        /// Interrupt shadow; and the event that waits, which isn't loaded back.
        const EVENTS = 1 << 7;
        /// TSC offset and TSC_AUX.
        const TSC = 1 << 8;
        /// XCR0. Loading it gives #GP-free values only: the kernel refuses what the CPU would.
        const XCR0 = 1 << 9;
    }
}
wire_flags!(Groups);

bitflags::bitflags! {
    /// Facts about an exit.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ExitFlags: u32 {
        /// RFLAGS.TF of the guest: whoever executes an instruction in its place owes it a #DB.
        const TRAP = 1 << 8;
        /// RFLAGS.IF of the guest.
        const INTERRUPTS_ON = 1 << 9;
        /// The guest is in an interrupt shadow (STI or MOV SS).
        const SHADOW = 1 << 1;
        /// The exit came while an event was delivered; the kernel delivers it again at the next entry by itself.
        /// Injecting another one meanwhile is refused, unless it replaces this one.
        const EVENT_PENDING = 1 << 2;
        /// The event injected with the last reply is not pending any more (it was delivered or is in
        /// `EVENT_PENDING`). Clear only if the exit came before the world switch.
        const INJECTED = 1 << 3;
        /// `next_rip` is from the CPU; otherwise it is 0 and the instruction's length must be decoded.
        const NEXT_RIP = 1 << 4;
    }
}
wire_flags!(ExitFlags);

/// Exit codes: APM volume 2, appendix C, and codes of the kernel's own from 0xf000 up.
pub mod code {
    /// First of the CR read intercepts; + 16 are the writes.
    pub const READ_CR0: u16 = 0x00;
    /// MOV to DR0; + n for DRn.
    pub const WRITE_DR0: u16 = 0x30;
    /// Exception vector 0; + n for vector n.
    pub const EXCEPTION: u16 = 0x40;
    /// Physical interrupt. The kernel handles it.
    pub const INTR: u16 = 0x60;
    /// NMI. The kernel handles it.
    pub const NMI: u16 = 0x61;
    /// SMI.
    pub const SMI: u16 = 0x62;
    /// INIT.
    pub const INIT: u16 = 0x63;
    /// The guest can take the interrupt that a window was asked for.
    pub const VINTR: u16 = 0x64;
    /// CR0 write that changes more than TS and MP.
    pub const CR0_SEL_WRITE: u16 = 0x65;
    /// CPUID.
    pub const CPUID: u16 = 0x72;
    /// IRET.
    pub const IRET: u16 = 0x74;
    /// INTn, and on QEMU INT3.
    pub const SWINT: u16 = 0x75;
    /// IN, OUT, INS, OUTS.
    pub const IOIO: u16 = 0x7b;
    /// RDMSR (info1 = 0) and WRMSR (info1 = 1).
    pub const MSR: u16 = 0x7c;
    /// Task switch.
    pub const TASK_SWITCH: u16 = 0x7d;
    /// Triple fault or other shutdown.
    pub const SHUTDOWN: u16 = 0x7f;
    /// VMMCALL.
    pub const VMMCALL: u16 = 0x81;
    /// ICEBP.
    pub const ICEBP: u16 = 0x88;
    /// WBINVD and WBNOINVD.
    pub const WBINVD: u16 = 0x89;
    /// XSETBV.
    pub const XSETBV: u16 = 0x8d;
    /// Nested page fault: info1 = error code, info2 = guest-physical address.
    pub const NPF: u16 = 0x400;
    /// Own: VMRUN refused the VMCB (the CPU's exit code is −1).
    pub const INVALID: u16 = 0xf000;
    /// Own: the vCPU was kicked, or was parked and is kicked.
    pub const KICK: u16 = 0xf001;
    /// Own: the deadline of the last reply has come.
    pub const TIMER: u16 = 0xf002;
}

packed! {
    /// What the kernel delivers to the vmm for an exit. Words: EXITINFO1 and 2; the guest's rip, at the instruction for
    /// intercepts; its rax, rcx and rdx; the next instruction's rip, or 0 (see [`ExitFlags::NEXT_RIP`]).
    pub struct Exit {
        head {
            /// Index of the vCPU in the VM.
            vcpu: u8 = 0, 3;
            /// Which of the vCPU's VMCB contexts was running.
            context: u8 = 8, 2;
            /// See [`code`].
            code: u16 = 16, 16;
            /// Facts about the moment of the exit.
            flags: ExitFlags = 32, 32;
        }
        words { info1, info2, rip, rax, rcx, rdx, next_rip }
    }
}
const _: () = assert!(crate::abi::MAX_VCPUS == 1 << 3 && crate::abi::MAX_VIEWS == 1 << 2);

wire_enum! {
    /// What becomes of the vCPU: it enters the guest again; it waits for a kick or the deadline, and exits then with KICK or
    /// TIMER; it doesn't run until `VcpuRun`.
    pub enum Action { Run = 0, Park = 1, Stop = 2 }
}

packed! {
    /// The vmm's reply to an exit. Words: the guest's rip and rax; the event to inject, in EVENTINJ's format (APM
    /// volume 2, section 15.20), 0 for none; the point of the machine's TSC at which to leave with TIMER, 0 for never.
    pub struct Resume {
        head {
            /// Whether it runs.
            action: Action = 0, 8;
            /// Which VMCB context runs next.
            context: u8 = 8, 2;
            /// Which view the guest sees next.
            view: u8 = 16, 2;
            /// Leave with VINTR as soon as the guest can take an interrupt.
            window: bool = 24, 1;
            /// Leave with IRET as soon as the guest executes one: NMIs are masked until then.
            iret: bool = 26, 1;
            /// What is injected takes the place of an event that waits.
            replace: bool = 27, 1;
            /// Forget the interrupt shadow: the instruction was emulated.
            clear_shadow: bool = 25, 1;
            /// Groups to load from the state page. With [`Groups::CORE`], `rip` and `rax` here are ignored.
            groups: Groups = 32, 32;
        }
        words { rip, rax, inject, deadline }
    }
}

records! {
    /// A segment register with its hidden part, as a VMCB has it (APM volume 2, section 15.5.1 and appendix B).
    pub struct Segment {
        /// Selector.
        pub selector: u16,
        /// Attributes: descriptor bits 55:52 and 47:40, packed into 12 bits.
        pub attributes: u16,
        /// Limit in bytes, granularity applied.
        pub limit: u32,
        /// Linear base address.
        pub base: u64,
    }

    /// The registers of a guest that VMRUN and VMLOAD load, as a VMCB's save area has them (APM volume 2, appendix B).
    pub struct Save {
        /// es cs ss ds fs gs ([`Groups::SEGMENTS`]).
        pub segments: [Segment; 6],
        /// Global descriptor table ([`Groups::TABLES`]).
        pub gdtr: Segment,
        /// Local descriptor table ([`Groups::SEGMENTS`]).
        pub ldtr: Segment,
        /// Interrupt descriptor table ([`Groups::TABLES`]).
        pub idtr: Segment,
        /// Task register ([`Groups::SEGMENTS`]).
        pub tr: Segment,
        /// No register.
        pub reserved_0a0: [u64; 5],
        /// No register.
        pub reserved_0c8: [u8; 3],
        /// Current privilege level, 0 to 3 ([`Groups::CORE`]).
        pub cpl: u8,
        /// No register.
        pub reserved_0cc: u32,
        /// Extended features ([`Groups::CONTROL`]). The kernel keeps SVME set for the CPU and hides it in the state page.
        pub efer: u64,
        /// No register.
        pub reserved_0d8: [u64; 14],
        /// Control register 4 ([`Groups::CONTROL`]).
        pub cr4: u64,
        /// Page-table root ([`Groups::CONTROL`]).
        pub cr3: u64,
        /// Control register 0 ([`Groups::CONTROL`]).
        pub cr0: u64,
        /// Debug control ([`Groups::DEBUG`]).
        pub dr7: u64,
        /// Debug status ([`Groups::DEBUG`]).
        pub dr6: u64,
        /// Flags ([`Groups::CORE`]).
        pub rflags: u64,
        /// Instruction pointer ([`Groups::CORE`]).
        pub rip: u64,
        /// No register.
        pub reserved_180: [u64; 11],
        /// Stack pointer; in the state page see [`VcpuState::gpr`].
        pub rsp: u64,
        /// No register.
        pub reserved_1e0: [u64; 3],
        /// rax; in the state page see [`VcpuState::gpr`].
        pub rax: u64,
        /// MSR C000_0081 ([`Groups::SYSCALL`]).
        pub star: u64,
        /// MSR C000_0082 ([`Groups::SYSCALL`]).
        pub lstar: u64,
        /// MSR C000_0083 ([`Groups::SYSCALL`]).
        pub cstar: u64,
        /// MSR C000_0084 ([`Groups::SYSCALL`]).
        pub sfmask: u64,
        /// MSR C000_0102 ([`Groups::SYSCALL`]).
        pub kernel_gs_base: u64,
        /// MSR 174 ([`Groups::SYSCALL`]).
        pub sysenter_cs: u64,
        /// MSR 175 ([`Groups::SYSCALL`]).
        pub sysenter_esp: u64,
        /// MSR 176 ([`Groups::SYSCALL`]).
        pub sysenter_eip: u64,
        /// Page-fault address ([`Groups::CONTROL`]).
        pub cr2: u64,
        /// No register.
        pub reserved_248: [u64; 4],
        /// MSR 277 ([`Groups::PAT`]).
        pub pat: u64,
    }

    /// The state page of a vCPU: what kernel and vmm share of it. Values in it are the guest's own; none is trusted.
    pub struct VcpuState {
        /// rax rcx rdx rbx rsp rbp rsi rdi r8 … r15, in the order of their encoding. rax and rsp are in
        /// [`Groups::CORE`], the others always current.
        pub gpr: [u64; 16],
        /// The registers that a VMCB has, but for rax and rsp.
        pub save: Save,
        /// Debug addresses 0 to 3 ([`Groups::DEBUG`]).
        pub dr: [u64; 4],
        /// Bit 0: interrupt shadow ([`Groups::EVENTS`]).
        pub shadow: u64,
        /// The event that waits, in EVENTINJ's format, or 0 ([`Groups::EVENTS`], never loaded).
        pub event: u64,
        /// Added to the machine's TSC ([`Groups::TSC`]).
        pub tsc_offset: u64,
        /// MSR C000_0103 ([`Groups::TSC`]).
        pub tsc_aux: u64,
        /// XCR0 ([`Groups::XCR0`]).
        pub xcr0: u64,
        /// How often the guest executed WBINVD: the kernel counts here, and executes nothing. No group.
        pub wbinvds: u64,
    }

    /// A line of the CPUID table that the kernel answers from, or a hypercall that always answers the same.
    pub struct CpuidEntry {
        /// eax on entry.
        pub leaf: u32,
        /// ecx on entry; matters if `flags` has [`CpuidEntry::SUBLEAF`].
        pub subleaf: u32,
        /// See the constants.
        pub flags: u32,
        /// Answer: eax, ebx, ecx, edx.
        pub answer: [u32; 4],
        /// 0 where there is no entry.
        pub used: u32,
    }
}

const _: () = assert!(size_of::<VcpuState>() <= crate::addr::PAGE_SIZE as usize);

impl CpuidEntry {
    /// The entry answers its subleaf only.
    pub const SUBLEAF: u32 = 1;
    /// Bit 27 of ecx (OSXSAVE) mirrors CR4.OSXSAVE.
    pub const OSXSAVE: u32 = 2;
    /// The vmm wants this leaf as an exit.
    pub const ASK: u32 = 4;
    /// No leaf but a hypercall: `leaf` is [`HYPERCALLS`](Self::HYPERCALLS) + rax, and `answer` begins with the low and
    /// the high half of the rax to come.
    pub const HYPERCALL: u32 = 8;
    /// Where hypercalls are among the leaves.
    pub const HYPERCALLS: u32 = 0xc000_0000;
    /// Entries that fit the page lent with `CpuidLoad`.
    pub const MAX: usize = 128;

    /// The `step`th place where the kernel looks for an entry of a leaf, for steps from 0 on until one isn't used.
    /// Standard leaves begin at 0, hypervisor leaves (4000_0000) at 32, extended ones (8000_0000) at 64.
    pub const fn place(leaf: u32, step: usize) -> usize {
        ((leaf ^ leaf >> 25) as usize + step) % Self::MAX
    }
}

const _: () = assert!(size_of::<CpuidEntry>() * CpuidEntry::MAX == 4096);
