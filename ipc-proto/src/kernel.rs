//! The kernel's operations: what a service may ask of ring 0. Mechanism only.
//!
//! A class of operations needs its capability ([`Caps`]), which the manifest gives. An operation first checks
//! everything and may fail without side effect; then it happens.

use crate::abi::Status;
use crate::addr::{BatchId, CpuId, Frame, Gfn, Sequence, ServiceId, Spa, Ticket, Tsc, VcpuId, VmId};
use crate::vcpu::Groups;
use crate::wire::Done;

/// Errors of kernel operations are [`Status`] values.
pub type Error = Status;

bitflags::bitflags! {
    /// Classes of kernel operations; the manifest's `kernel = […]` names them in lower case.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Caps: u32 {
        /// See how services fare; restart and kill them; end the machine.
        const SUPERVISE = 1 << 0;
        /// Enumerate frames; create VMs and map frames into them and into their vmms.
        const FRAMES = 1 << 1;
        /// Ask for write-back.
        const WRITEBACK = 1 << 2;
        /// Run vCPUs of VMs that this service handles.
        const VCPUS = 1 << 3;
        /// Have a timer.
        const TIMER = 1 << 4;
        /// Stand in for hardware on private memory. Emulating boards only.
        const SILICON = 1 << 5;
        /// Ring the secure processor, bind and recycle ASIDs.
        const FIRMWARE = 1 << 6;
    }
}
wire_flags!(Caps);

bitflags::bitflags! {
    /// Access that a mapping grants.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u8 {
        /// Reads.
        const READ = 1;
        /// Writes.
        const WRITE = 2;
        /// Instruction fetches.
        const EXECUTE = 4;
    }
}
wire_flags!(Access);

bitflags::bitflags! {
    /// What this machine can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// WBNOINVD is executed for write-backs, not its fallback WBINVD.
        const WBNOINVD = 1 << 0;
        /// There is a mailbox of a secure processor, and so there can be encrypted VMs.
        const SEV = 1 << 1;
        /// There is an RMP, and so there can be SEV-SNP VMs.
        const SNP = 1 << 2;
    }
}
wire_flags!(Features);

wire_enum! {
    /// What a frame is (DESIGN's invariant 1): nobody's; the kernel's (its image, tables, VMCBs, nested page tables); a service's
    /// or a VM's, shared with the host; a VM's, mapped nowhere in the host; the secure processor's; taken from its owner,
    /// waiting for its batch to be paid; never to be used again.
    pub enum FrameState { Free = 0, Kernel = 1, Owned = 2, Private = 3, Firmware = 4, Quarantined = 5, Leaked = 6 }
}

wire_enum! {
    /// What a VM is, and so what its reclaim owes: not encrypted, SEV, SEV-ES, SEV-SNP.
    pub enum VmKind { Plain = 0, Sev = 1, SevEs = 2, SevSnp = 3 }
}

wire_enum! {
    /// What an ASID is (DESIGN's invariant 2): it may be bound; a VM's, which the firmware knows nothing of yet; a
    /// VM's, and active in the firmware; deactivated, or its VM is gone, so that lines of it may be in any cache; every
    /// CPU completed a WBINVD since, and DF_FLUSH is owed.
    pub enum AsidState { Free = 0, Bound = 1, Active = 2, Dirty = 3, Flushed = 4 }
}

/// In the handle of an ASID's guest: the firmware knows no guest there, and still has the page.
pub const FORGOTTEN: u64 = 1 << 63;

wire_enum! {
    /// How the secure processor's mailbox stands: no command was rung since its last result was taken; one is under way; one
    /// has ended.
    pub enum MailboxState { Idle = 0, Busy = 1, Done = 2 }
}

wire_enum! {
    /// Life of a service: never started, runs, faulted (see the epitaph), ended itself, killed by the supervisor.
    pub enum ServiceState { Unstarted = 0, Running = 1, Faulted = 2, Exited = 3, Killed = 4 }
}

wire_enum! {
    /// Life of a VM: its vCPUs may run; or its handler died or it was destroyed, and its frames are to be taken back.
    pub enum VmState { Alive = 0, Dying = 1 }
}

wire_enum! {
    /// Where a fault came from: no fault; a CPU exception (`code` is vector << 32 | error code); a malformed or
    /// forbidden message (`code` is word 0 of it); it ran too long for one request (`code` is the budget in
    /// milliseconds); a panic that the service reported itself.
    pub enum FaultKind { None = 0, Exception = 1, Protocol = 2, Overrun = 3, Panic = 4 }
}

replies! {
    /// How a service fares: its present id, its state; why it faulted (`fault`, `code`: see [`FaultKind`]) with
    /// instruction pointer, address of a page fault and stack pointer; `client`: on whose behalf it ran, the VM and vCPU
    /// or the calling service, as the sender field says. For `Exited`, `code` is the
    /// [`ExitKind`](crate::supervisor::ExitKind), and the last four are words 1 to 4 of the exit.
    pub struct ServiceReport {
        id: ServiceId, state: ServiceState, fault: FaultKind, code: u64, rip: u64, address: u64, rsp: u64, client: u64,
    }
    /// The new id after a restart.
    pub struct Restarted { id: ServiceId }
    /// The machine: CPUs that run, TSC ticks a millisecond, what it can do, what frame numbers are below, ASIDs of the
    /// SVM, services in the manifest. ASIDs of encrypted VMs: SEV-ES and SEV-SNP VMs have those
    /// from 1 to before `sev_asids` bits 31:16, SEV VMs from there to its bits 15:0; 0 without SEV.
    pub struct Machine {
        cpus: u16, tsc_khz: u64, features: Features, frames: u64, asids: u32, services: u16, sev_asids: u32,
    }
    /// A run of frames that are alike: the first, how many (0 past the end of memory), their state, and the VM that they
    /// belong to or were taken from, if `owned_by_vm`.
    pub struct FrameRun { start: Frame, count: u64, state: FrameState, vm: VmId, owned_by_vm: bool }
    /// Frames by [`FrameState`].
    pub struct FrameCounts {
        free: u64, kernel: u64, owned: u64, private: u64, firmware: u64, quarantined: u64, leaked: u64,
    }
    /// A new VM.
    pub struct VmCreated { vm: VmId }
    /// What a VM is: its id, the service that handles its exits, kind and state, frames mapped in it, the kernel's frames
    /// for it (tables, VMCBs, state pages); `next` is the slot after this one: where to look on; its invalidation
    /// sequence, to be given back with a commit.
    pub struct VmReport {
        vm: VmId, handler: ServiceId, kind: VmKind, state: VmState, pages: u64, kernel_frames: u64, next: u16, sequence: Sequence,
    }
    /// What was taken from a VM: the batch that the frames wait in (meaningless without pages), how many pages were mapped
    /// and now aren't, and where to go on: the first gfn not looked at. `waiting`: frames that the batch took with the end of
    /// this event; 0 while it goes on.
    pub struct Unmapped { batch: BatchId, pages: u64, next: Gfn, waiting: u64 }
    /// So many pages from there on are alike: in their state, `Free` for not mapped, and in the pages that one entry maps, 1 or
    /// 512. With the frame of the first.
    pub struct Look { pages: u64, state: FrameState, span: u64, frame: Frame }
    /// An open batch: the VM that its frames were taken from and that VM's kind, how many wait in it, how many CPUs
    /// still owe a write-back; `next` is the slot after this one: where to look on.
    pub struct BatchReport { batch: BatchId, vm: VmId, kind: VmKind, frames: u64, owed: u16, next: u16 }
    /// Accepted: it is done when the ticket is. Ticket 0 is always done.
    pub struct Accepted { ticket: Ticket }
    /// Whether a ticket is done: every CPU has answered; if not, the first that hasn't.
    pub struct TicketState { done: bool, late: CpuId }
    /// An ASID of encrypted VMs: what it is, the VM that has it or had it last with its kind, and the firmware's handle
    /// of that VM or the address of its context page, perhaps with [`FORGOTTEN`]; 0 for none.
    pub struct AsidReport { state: AsidState, vm: VmId, kind: VmKind, handle: u64 }
    /// How the last command of the secure processor stands: its number, what was answered (bits 15:0 of the register; 0
    /// unless it has ended), the VM that it was for.
    pub struct MailboxReport { state: MailboxState, command: u16, status: u16, vm: VmId }
    /// What a CPU shows to the secure processor: WBINVDs that it completed; the RMP's first frame, 0 for none.
    pub struct CpuReport { wbinvds: u64, rmp: Frame }
}

requests! {
    /// Every kernel operation.
    pub enum KernelCall;

    /// How the service in this slot of the manifest's order fares. [`Caps::SUPERVISE`].
    ServiceStatus = 1 { slot: u16 } -> ServiceReport;
    /// Start a dead or unstarted service from its pristine image. [`Caps::SUPERVISE`].
    /// `Dead` if it is another generation by now, `State` if it runs or a call into it is still being unwound.
    ServiceRestart = 2 { service: ServiceId } -> Restarted;
    /// End a running service. [`Caps::SUPERVISE`].
    ServiceKill = 3 { service: ServiceId } -> Done;
    /// End the machine with this status. [`Caps::SUPERVISE`]. Doesn't return.
    PowerOff = 4 { status: u8 } -> Done;
    /// What machine this is. No capability needed.
    MachineInfo = 5 {} -> Machine;
    /// Ring this service's [`doorbell::TIMER`](crate::abi::doorbell::TIMER) at this time; 0 cancels. [`Caps::TIMER`].
    TimerSet = 6 { at: Tsc } -> Done;

    /// The run of like frames that starts at a frame; of a longer one the first `most`, and of those 32,768. [`Caps::FRAMES`].
    FrameRuns = 16 { from: Frame, most: u64 } -> FrameRun;
    /// How many frames are in each state. [`Caps::FRAMES`].
    FrameCount = 17 {} -> FrameCounts;
    /// Make a VM whose exits `handler` handles, with a free frame for its first root. [`Caps::FRAMES`].
    /// `Unsupported` for a kind which the machine or the kernel can't run.
    VmCreate = 18 { handler: ServiceId, kind: VmKind, root: Frame } -> VmCreated;
    /// Stop a VM for good. Its frames stay until they are unmapped. [`Caps::FRAMES`].
    VmDestroy = 19 { vm: VmId } -> Done;
    /// Take back everything of a dying VM without pages: its tables and vCPUs' frames join a batch, its id dies.
    /// [`Caps::FRAMES`]. `Busy` while pages are mapped.
    VmRelease = 20 { vm: VmId } -> Unmapped;
    /// What VM is in this slot or the next that has one. `NotFound` past the last. [`Caps::FRAMES`],
    /// [`Caps::FIRMWARE`] or [`Caps::SUPERVISE`].
    VmInfo = 21 { slot: u16 } -> VmReport;
    /// Give `count` free frames in a row, at most 64 in stock, to a VM for its nested tables. [`Caps::FRAMES`].
    TablesDonate = 22 { vm: VmId, frame: Frame, count: u64 } -> Done;
    /// Give a vCPU, which runs on `cpu`, its frames: [`VCPU_FRAMES`] free ones from `frame` on. Its state page appears
    /// in the handler. [`Caps::FRAMES`].
    VcpuCreate = 23 { vcpu: VcpuId, cpu: CpuId, frame: Frame } -> Done;
    /// Map at most 512 free frames from `frame` on, zeroed by the kernel or with the contents of as many leased pages, into a view of a VM and, for shared memory,
    /// into its handler at [`GUEST`](crate::layout::GUEST). 512 aligned pages become one large page. [`Caps::FRAMES`].
    /// `sequence` is what `VmInfo` told before the decision: `Stale` if it moved. `Exhausted` when tables are lacking:
    /// donate and try again.
    GuestMap = 24 { vm: VmId, view: u8, gfn: Gfn, frame: Frame, pages: u64, access: Access, sequence: Sequence } -> Done;
    /// Unmap the first 512 pages that are mapped in a range, in 1 GiB of it at the most, from a VM and its handler,
    /// complete the shootdown, put the frames into a batch. [`Caps::FRAMES`]. With `more`, the event goes on: shootdown and
    /// write-backs are left to its last call, which may be of no pages; until then nobody can pay for the batch. `Busy` if no batch
    /// is left for that. A SEV-SNP VM pays at each call. What is `broken` is leaked and never used again.
    GuestUnmap = 25 { vm: VmId, view: u8, gfn: Gfn, pages: u64, more: bool, broken: bool } -> Unmapped;
    /// How a VM's pages stand in its view 0: how many of at most 512 are like the first. [`Caps::FRAMES`].
    GuestLook = 26 { vm: VmId, gfn: Gfn, pages: u64 } -> Look;
    /// A VM is about to change from `start` to before `end`: commits inside it are refused until the end. [`Caps::WRITEBACK`].
    InvalidateBegin = 27 { vm: VmId, start: Gfn, end: Gfn } -> Done;
    /// The change is over; moves the sequence. [`Caps::WRITEBACK`]. `State` if none is open.
    InvalidateEnd = 28 { vm: VmId } -> Done;
    /// Give at most 512 free frames to the secure processor, for good. [`Caps::FRAMES`]. Those that the RMP refuses are leaked.
    FrameDonate = 29 { frame: Frame, pages: u64 } -> Done;
    /// Turn at most 512 pages of a VM's view 0, all mapped, private, or shared again, where they lie. What
    /// turns private disappears from its handler with the host's translations, and plain lines of it are flushed
    /// everywhere; what turns shared appears there, after a shootdown of the VM's translations, and encrypted lines are
    /// flushed, under its ASID. What is in the pages of an encrypted VM is lost. [`Caps::FRAMES`] or [`Caps::FIRMWARE`]. A SEV-SNP VM
    /// must have its ASID; the RMP assigns its pages, and takes them back. SEV and SEV-ES need an ASID to shared.
    /// With `large`, 512 aligned pages in a row become one large page, in the RMP, too; large pages of a SEV-SNP VM that turn in part
    /// are split.
    /// `State` if a page isn't what it is to turn from, or the RMP refuses one; what lies before that has turned then,
    /// and the handler sees nothing of the rest. `Exhausted` when tables are lacking. `Busy` to shared while the processor
    /// works for this VM.
    GuestConvert = 30 { vm: VmId, gfn: Gfn, pages: u64, private: bool, large: bool } -> Done;

    /// What batch is in this slot or the next that has one. `NotFound` past the last.
    /// [`Caps::WRITEBACK`] or [`Caps::FRAMES`].
    BatchInfo = 32 { slot: u16 } -> BatchReport;
    /// Write back what a batch is owed, on the CPUs that owe it. [`Caps::WRITEBACK`].
    /// The last acknowledgement frees the frames and rings the doorbells.
    WriteBack = 33 { batch: BatchId } -> Accepted;
    /// Whether a ticket is done. [`Caps::WRITEBACK`] or [`Caps::FIRMWARE`].
    TicketCheck = 34 { ticket: Ticket } -> TicketState;
    /// Execute WBINVD on every CPU. [`Caps::FIRMWARE`]. It pays for every batch that is open, and the ASIDs that are
    /// `Dirty` now are `Flushed` when the ticket is done.
    WriteBackInvalidate = 35 {} -> Accepted;

    /// Bind an ASID to an encrypted VM whose vCPUs don't run. [`Caps::FIRMWARE`]. `Range` if the ASID isn't of the
    /// VM's class, `TooWeak` if it isn't recycled yet (WBINVD everywhere, then DF_FLUSH), `Busy` if it is another's,
    /// `State` if the VM has one or is plain.
    AsidBind = 40 { vm: VmId, asid: u32 } -> Done;
    /// What this ASID of encrypted VMs is. [`Caps::FIRMWARE`]. `NotFound` past the last.
    AsidInfo = 41 { asid: u32 } -> AsidReport;
    /// Ring the secure processor. [`Caps::FIRMWARE`]. The first leased page begins with the command's buffer, the
    /// others are its data. What identifies the guest and names memory is the kernel's to fill in or to check: see
    /// [`crate::mailbox`]. `Busy` while a command is under way or its result wasn't taken, `NotFound` for a command
    /// that isn't known, `Range` for an address or length that doesn't fit, `State` if the VM isn't at that point,
    /// `TooWeak` for DF_FLUSH while an ASID is `Dirty`. While pages of the mailbox are the processor's (SEV-SNP),
    /// everything is `State` but SNP_PAGE_RECLAIM without data. `Exhausted` for SNP_GCTX_CREATE of a VM without tables
    /// in stock.
    MailboxRing = 42 { command: u16, vm: VmId } -> Done;
    /// Take the result of the last command. [`Caps::FIRMWARE`]. Once it has ended, its buffer and data are copied to the leased
    /// pages, whatever its status, and what it changed is recorded.
    MailboxTake = 43 {} -> MailboxReport;

    /// Load every group from the state page and let a vCPU run. [`Caps::VCPUS`], of an own VM only.
    VcpuRun = 48 { vcpu: VcpuId } -> Done;
    /// Make a vCPU exit with KICK, now or at its next entry. [`Caps::VCPUS`].
    VcpuKick = 49 { vcpu: VcpuId } -> Done;
    /// Fill groups of the state page. [`Caps::VCPUS`]. `Busy` unless the vCPU is in its exit or stopped.
    VcpuRead = 50 { vcpu: VcpuId, groups: Groups } -> Done;
    /// Load the CPUID table of a vCPU from one leased page, laid out as by [`arrange`](crate::cpuid::arrange).
    /// [`Caps::VCPUS`]. `Busy` unless the vCPU is in its exit or stopped.
    CpuidLoad = 51 { vcpu: VcpuId } -> Done;

    /// Copy between memory and the leased page, at most to the end of a frame, as the secure processor reaches it.
    /// [`Caps::SILICON`].
    SiliconCopy = 56 { at: Spa, bytes: u64, write: bool } -> Done;
    /// What a CPU shows to the secure processor. [`Caps::SILICON`].
    SiliconCpu = 59 { cpu: CpuId } -> CpuReport;
}

/// Frames that a vCPU takes: state page, VMCB, FPU area (two), MSR permission map (two), CPUID table.
pub const VCPU_FRAMES: u64 = 7;

/// What the supervisor tells the host when all is over, as one record on the console's system channel; also the
/// machine's exit status.
pub mod verdict {
    /// Every VM was powered off.
    pub const CLEAN: u8 = 0;
    /// A guest crashed.
    pub const GUEST_CRASHED: u8 = 2;
    /// A service or the kernel faulted.
    pub const FAULTED: u8 = 3;
    /// A VM could not be set up.
    pub const BAD_SETUP: u8 = 5;
}
