//! sev-firmware: speaks for the secure processor.
//!
//! What takes the processor's time is a *job*. The reply to its request is its number; when it has ended, the
//! [`TICKET`](crate::abi::doorbell::TICKET) of the caller rings, and [`JobResult`] tells how. Jobs are done one after the
//! other, in the order in which they came. A refusal at once means that nothing was queued.
//!
//! Data travels in leased pages, at most [`DATA_PAGES`]: what a request takes is read while it is queued, and what a job gives
//! is written to the pages lent with [`JobResult`]. Each part of the data begins on a page, in the order that the request tells.
//! Layouts of certificates, reports and the like are those of 55766 (SEV) and 56860 (SNP).
//!
//! A VM is its handler's. memory and notifier speak for every VM, and they alone for the platform.

use crate::abi::Status;
use crate::addr::{Frame, Gfn, Gpa, VmId};
use crate::wire::{Done, Field};

/// Errors are [`Status`] values; `Unsupported` on a machine without SEV and after the processor died, `Exhausted` while there
/// is no room for another job of the caller's, `Denied` for a VM or a command that isn't the caller's, `NotFound` for a VM
/// that doesn't exist, `BadLease` if the pages that a request takes aren't lent.
pub type Error = Status;

/// Pages of data that a job takes or gives at the most.
pub const DATA_PAGES: u64 = crate::mailbox::DATA_BYTES / crate::addr::PAGE_SIZE;
/// Bytes of a platform's certificate.
pub const CERTIFICATE: u32 = 0x824;
/// Bytes of an owner's session.
pub const SESSION: u32 = 128;
/// Bytes of the secret that LAUNCH_SECRET takes at the most.
pub const SECRET: u32 = 0x4000;
/// Bytes of the header that comes with it.
pub const SECRET_HEADER: u32 = 52;
/// What `done` and a request of memory count in one job at the most.
pub const JOB_PAGES: u64 = crate::abi::MAX_PAGES_PER_CALL;
/// Pages of a region at the most.
pub const REGION_PAGES: u64 = 1 << 26;

/// A job of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct JobId(pub u32);

impl Field for JobId {
    fn to_word(self) -> u64 {
        u64::from(self.0)
    }
    fn from_word(word: u64) -> Option<Self> {
        u32::try_from(word).ok().map(Self)
    }
}

wire_enum! {
    /// What the machine offers.
    pub enum SevSupport {
        /// No SEV: the machine has no secure processor.
        None = 0,
        /// SEV, and perhaps more.
        Present = 1,
    }
}

wire_enum! {
    /// Whether the processor can be asked.
    pub enum Life {
        /// What a predecessor left is being looked at; jobs wait.
        Starting = 0,
        /// It answers.
        Ready = 1,
        /// It didn't answer in time, or answered something else. No job is taken any more.
        Dead = 2,
    }
}

wire_enum! {
    /// The platform's state (55766 section 5.1.2).
    pub enum PlatformState {
        /// Nothing but initialisation and questions.
        Uninit = 0,
        /// No guests.
        Init = 1,
        /// Guests.
        Working = 2,
        /// It wasn't asked yet, or said something else.
        Unknown = 3,
    }
}

wire_enum! {
    /// Commands of the platform without parameters or answers.
    pub enum PlatformCommand {
        /// SHUTDOWN, after a WBINVD on all CPUs. Every SEV and SEV-ES guest is forgotten.
        Shutdown = 0,
        /// PLATFORM_RESET.
        Reset = 1,
        /// WBINVD on all CPUs and DF_FLUSH. `Busy` if no ASID waits for it.
        Flush = 2,
        /// PEK_GEN.
        PekGen = 3,
        /// PDH_GEN.
        PdhGen = 4,
        /// SNP_COMMIT.
        SnpCommit = 5,
    }
}

wire_enum! {
    /// What can be read of the platform. Anybody may ask for all but `PekCsr`.
    pub enum PlatformFact {
        /// PLATFORM_STATUS: 12 bytes.
        Status = 0,
        /// SNP_PLATFORM_STATUS: 32 bytes.
        SnpStatus = 1,
        /// GET_ID: the chip's id.
        ChipId = 2,
        /// PDH_CERT_EXPORT: the Diffie-Hellman key's certificate in page 0; those of endorsement key, owner and chip
        /// one after the other from page 1 on.
        PdhExport = 3,
        /// PEK_CSR: the endorsement key's certificate, to be signed.
        PekCsr = 4,
    }
}

wire_enum! {
    /// What a page is to an SNP launch (56860, "SNP_LAUNCH_UPDATE").
    pub enum SnpPageType {
        /// Measured with its content.
        Normal = 1,
        /// A vCPU's save area, measured.
        Vmsa = 2,
        /// Zeros, measured as such.
        Zero = 3,
        /// Its content isn't measured.
        Unmeasured = 4,
        /// The processor writes its secrets there.
        Secrets = 5,
        /// What CPUID tells.
        Cpuid = 6,
    }
}

wire_enum! {
    /// How far a job is.
    pub enum JobState {
        /// Others come first.
        Waiting = 0,
        /// It is under way.
        Running = 1,
        /// It has ended; its number is forgotten with this answer.
        Ended = 2,
    }
}

wire_enum! {
    /// Who ended a job.
    pub enum Cause {
        /// Nobody: it did all that it had to.
        Nobody = 0,
        /// sev-firmware: by its own account this isn't possible.
        Service = 1,
        /// The kernel.
        Kernel = 2,
        /// The processor, with the status that stands beside.
        Processor = 3,
        /// The processor died before or during it.
        Dead = 4,
    }
}

bitflags::bitflags! {
    /// What comes with the end of an SNP launch.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SnpFinish: u8 {
        /// An ID block in page 0, 96 bytes, and its authentication in page 1.
        const ID_BLOCK = 1;
        /// The author's key is in the authentication, too.
        const AUTHOR = 2;
        /// Reports aren't signed by the chip's key.
        const VCEK_DISABLED = 4;
    }
}
wire_flags!(SnpFinish);

bitflags::bitflags! {
    /// How SNP is to end.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SnpShutdown: u8 {
        /// The IOMMU's part, too.
        const IOMMU = 1;
        /// The CPUs' part, too.
        const X86 = 2;
    }
}
wire_flags!(SnpShutdown);

replies! {
    /// The platform, as it was told last.
    pub struct Platform {
        /// What it offers.
        pub support: SevSupport,
        /// Whether it can be asked.
        pub life: Life,
        /// SEV's state.
        pub sev: PlatformState,
        /// Whether SNP is initialised.
        pub snp: bool,
        /// Jobs that haven't ended.
        pub jobs: u32,
        /// ASIDs that won't be used again, since the processor didn't forget their guest or holds them for another.
        pub leaked_asids: u32,
        /// Pages that the processor didn't give back.
        pub leaked_pages: u64,
        /// DF_FLUSHes that succeeded since this service started.
        pub flushes: u64,
    }
    /// A job was queued.
    pub struct Queued {
        /// Its number.
        pub job: JobId,
    }
    /// How a job stands.
    pub struct JobReport {
        /// How far it is. The other fields mean something when it has ended.
        pub state: JobState,
        /// `Ok`, or why it failed.
        pub status: Status,
        /// Who ended it.
        pub cause: Cause,
        /// The processor's command that failed, or the last; 0 for none.
        pub command: u16,
        /// The processor's status of that command.
        pub firmware: u16,
        /// Bytes of data that it gave: on the pages lent, if they were lent. Also of a job that failed.
        pub bytes: u32,
        /// Bytes of memory, or pages of a region, that it got done. If a CPU completed no WBINVD in time, its number.
        pub done: u64,
    }
}

requests! {
    /// Every request to sev-firmware.
    pub enum FirmwareCall;

    /// How the platform stands. Anybody may ask; nothing is asked of the processor.
    PlatformStatus = 1 {} -> Platform;
    /// How a job stands. With writable pages for its data, if it gives any: `BadLease` without, `Range` if they are too few; it
    /// stays then. `NotFound` if the caller has no such job. What has ended is kept for some seconds at least;
    /// without data only until the caller has more jobs than its share.
    JobResult = 2 { job: JobId } -> JobReport;
    /// A command of the platform's.
    PlatformDo = 3 { command: PlatformCommand } -> Queued;
    /// Ask the platform.
    PlatformRead = 4 { fact: PlatformFact } -> Queued;
    /// INIT, then WBINVD on all CPUs and DF_FLUSH. With donated frames SEV-ES is initialised, too; 0 pages for none.
    Init = 5 { frame: Frame, pages: u64 } -> Queued;
    /// The same by INIT_EX. Takes, and gives, the 8 pages in which the platform keeps what it is; all ones for a new one.
    InitEx = 6 { frame: Frame, pages: u64 } -> Queued;
    /// PEK_CERT_IMPORT. Takes the endorsement key's certificate and the owner's.
    PekCertImport = 7 {} -> Queued;
    /// WBINVD on all CPUs, SNP_INIT_EX, WBINVD on all CPUs, SNP_DF_FLUSH.
    SnpInit = 8 { /** Whether the RMP is to be initialised. */ rmp: bool } -> Queued;
    /// WBINVD on all CPUs, SNP_DF_FLUSH, SNP_SHUTDOWN_EX.
    SnpShutdownEx = 9 { flags: SnpShutdown } -> Queued;
    /// SNP_CONFIG.
    SnpConfig = 10 { /** The TCB version that reports show. */ tcb: u64, mask_chip_id: bool } -> Queued;

    /// Start the launch of an SEV or SEV-ES guest: an ASID, LAUNCH_START, ACTIVATE. The job is `Busy` if no ASID is to
    /// be had; nothing changed then. Takes the owner's certificate and session, unless there is no owner.
    LaunchStart = 16 {
        vm: VmId,
        /** The guest's policy (55766 chapter 3). */ policy: u32,
        owner: bool,
    } -> Queued;
    /// LAUNCH_UPDATE_DATA, of private memory. A multiple of 16, at most [`JOB_PAGES`] pages' bytes.
    LaunchUpdate = 17 { vm: VmId, gpa: Gpa, bytes: u64 } -> Queued;
    /// LAUNCH_UPDATE_VMSA, of one private page.
    LaunchVmsa = 18 { vm: VmId, gfn: Gfn } -> Queued;
    /// LAUNCH_MEASURE. Gives measurement and nonce, 48 bytes.
    LaunchMeasure = 19 { vm: VmId } -> Queued;
    /// LAUNCH_SECRET, into private memory. Takes the header, and the packet of so many bytes.
    LaunchSecret = 20 { vm: VmId, gpa: Gpa, bytes: u32 } -> Queued;
    /// LAUNCH_FINISH.
    LaunchFinish = 21 { vm: VmId } -> Queued;
    /// ATTESTATION. Gives the report.
    Attestation = 22 { vm: VmId, nonce_low: u64, nonce_high: u64 } -> Queued;
    /// GUEST_STATUS: gives policy, ASID, state in 9 bytes. SNP_GUEST_STATUS: gives its 32 bytes.
    GuestStatus = 23 { vm: VmId } -> Queued;
    /// End a guest of any kind: DEACTIVATE and DECOMMISSION, or SNP_DECOMMISSION and SNP_PAGE_RECLAIM. Its regions are forgotten.
    /// `Ok` if the processor knows none. If the processor doesn't forget it, its ASID is never used again.
    Decommission = 24 { vm: VmId } -> Queued;

    /// Start the launch of an SNP guest: an ASID, SNP_GCTX_CREATE, SNP_LAUNCH_START, SNP_ACTIVATE. `Busy` as for `LaunchStart`.
    SnpLaunchStart = 32 {
        vm: VmId,
        /** The guest's policy (56860 section 4.3). */ policy: u64,
        /** What the hypervisor says of workarounds: bytes 7:0. */ workarounds_low: u64,
        /** Bytes 15:8. */ workarounds_high: u64,
    } -> Queued;
    /// SNP_LAUNCH_UPDATE, page by page, of private memory; at most [`JOB_PAGES`].
    SnpLaunchUpdate = 33 {
        vm: VmId,
        gfn: Gfn,
        pages: u64,
        page_type: SnpPageType,
        /** What VMPL 1, 2 and 3 may do, a byte each from bit 0 on, of which 4 bits may be set. */ permissions: u32,
    } -> Queued;
    /// SNP_LAUNCH_FINISH. Takes ID block and authentication, if the flags say so.
    SnpLaunchFinish = 34 {
        vm: VmId,
        flags: SnpFinish,
        /** The host's data in reports, 32 bytes in four words. */ host_0: u64,
        host_1: u64,
        host_2: u64,
        host_3: u64,
    } -> Queued;
    /// SNP_GUEST_REQUEST. Takes the guest's message, a page, and gives the answer, a page.
    SnpGuestRequest = 35 { vm: VmId } -> Queued;

    /// Turn a region of a VM private, at most [`REGION_PAGES`]; for SNP after the launch has started. The plain lines
    /// are flushed, so what a launch is to measure has to be written before. `State` if it overlaps a region of this
    /// VM. If the kernel refuses a part, what lies before it is the region.
    RegisterRegion = 48 {
        vm: VmId,
        gfn: Gfn,
        pages: u64,
        /** It is private already, by a request to a predecessor of this service: only note it. */ known: bool,
    } -> Queued;
    /// Forget a region. `NotFound` unless it was registered with exactly this page and size. The memory stays private until it
    /// is unmapped and written back.
    UnregisterRegion = 49 { vm: VmId, gfn: Gfn, pages: u64 } -> Done;
}
