//! memory: owns all frames that the kernel doesn't use, and so makes VMs.

use crate::abi::Status;
use crate::addr::{CpuId, Gfn, VmId};
use crate::kernel::VmKind;
use crate::notifier::VmNotices;
use crate::slots::{GmemAddress, GmemId, HostAddress, SlotId};
use crate::wire::Done;

/// Errors are [`Status`] values.
pub type Error = Status;

/// Doorbell bit (to a vmm): there is too little memory, or enough again, so [`Need`] says something new.
pub const NEED: u64 = 1 << 29;

/// Slots of one VM at the most; their ids are below this.
pub const MAX_SLOTS: u64 = 32_764;

bitflags::bitflags! {
    /// What a slot is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SlotFlags: u8 {
        /// The guest can't write there.
        const READ_ONLY = 1;
        /// Which pages the guest writes is noted.
        const LOG_DIRTY = 2;
        /// Its private pages are a gmem's.
        const GMEM = 4;
    }
}
wire_flags!(SlotFlags);

replies! {
    /// Whether something is left to be done: the same request goes on with it.
    pub struct Progress {
        /// Ask again.
        pub more: bool,
    }
    /// A slot.
    pub struct SlotReport {
        /// Its id.
        pub slot: SlotId,
        /// What it is.
        pub flags: SlotFlags,
        /// Its first guest frame.
        pub gfn: Gfn,
        /// Its length.
        pub pages: u64,
        /// What it shows there.
        pub host: HostAddress,
        /// And of private memory, if `flags` say so.
        pub gmem: GmemAddress,
        /// Not while it is being deleted or moved: nothing is mapped there then.
        pub valid: bool,
    }
    /// What a capability's number stands for here.
    pub struct CapabilityReport {
        /// 0 for one that isn't known.
        pub value: u64,
    }
    /// A new gmem.
    pub struct GmemMade {
        /// Its id.
        pub gmem: GmemId,
    }
    /// How far a `Fill` came.
    pub struct Filled {
        /// So many pages have their contents.
        pub pages: u64,
    }
    /// How far a `Punch` came.
    pub struct Punched {
        /// So many pages were looked at.
        pub pages: u64,
    }
    /// A VM of the caller's.
    pub struct VmMade {
        /// Its id.
        pub vm: VmId,
    }
    /// How memory stands, in frames.
    pub struct MemoryReport {
        /// Free now.
        pub free: u64,
        /// Belonging to VMs.
        pub owned: u64,
        /// Waiting for batches.
        pub quarantined: u64,
        /// Promised to VMs and not yet mapped.
        pub promised: u64,
        /// Never to be used again.
        pub leaked: u64,
    }
    /// How far the machine is from having enough for VMs that may have more than they were promised, in frames that nobody was
    /// promised.
    pub struct Needed {
        /// How many are lacking; 0 where there is no shortage.
        pub lacking: u64,
        /// How many there are beyond plenty.
        pub spare: u64,
        /// How many VMs share both.
        pub vms: u64,
    }
    /// How the frames of one VM stand, and what memory took from it since the VM or memory itself began.
    pub struct VmFrames {
        /// Mapped in it.
        pub mapped: u64,
        /// The kernel's for it: nested tables, VMCBs, state pages.
        pub kernel: u64,
        /// Taken from it and waiting for a write-back.
        pub quarantined: u64,
        /// Promised to it and not its yet.
        pub promised: u64,
        /// Taken from it in all.
        pub reclaimed: u64,
        /// How often the kernel was asked to take pages.
        pub flush_requests: u64,
        /// How often any was mapped, so that there was a shootdown.
        pub flushes: u64,
    }
}

requests! {
    /// Every request to memory.
    pub enum MemoryCall;

    /// Make a VM that the caller handles. `Exhausted` if this memory can't be promised.
    /// `Range` for no vCPU or too many, no page, more promised than there are to be, or CPUs that aren't there.
    /// A caller has one VM at a time: `State` if it has one already, `Busy` while one that is dying isn't gone.
    VmMake = 1 {
        /** Its kind. */ kind: VmKind,
        /** vCPUs, 1 to [`MAX_VCPUS`](crate::abi::MAX_VCPUS). */ vcpus: u8,
        /** Guest memory at the most, in pages. */ pages: u64,
        /** Of those, how many it is sure to get. The others come as far as nobody else was promised them. */ promised: u64,
        /** The CPU of vCPU 0. The others follow, and after the last CPU comes `lowest_cpu`. */ first_cpu: CpuId,
        /** No vCPU runs on a CPU below this. */ lowest_cpu: CpuId,
    } -> VmMade;
    /// Back a range of guest-physical memory with zeroed frames, as far as it isn't yet. Large pages where
    /// the range covers them. `Exhausted` beyond what `VmMake` promised. `NotFound`, and nothing is done, where no slot shows
    /// all of it; `Busy` while a slot there is being deleted or moved, or a `Discard` covers it. `State`, and nothing is done, if a
    /// page isn't what the guest reached for, private or shared; `Poisoned` if the memory of one is broken.
    Populate = 2 {
        /** A VM of the caller's. */ vm: VmId,
        /** First page. */ gfn: Gfn,
        /** How many, at most 512. */ pages: u64,
        /** Whether the guest reached for private pages: they are its own when this returns. */ private: bool,
    } -> Done;
    /// Give pages of guest-physical memory back, as far as they are there: a balloon holds them. What the VM was promised becomes
    /// less by that. It may populate them again as far as nobody else was promised them.
    GiveBack = 4 {
        /** A VM of the caller's. */ vm: VmId,
        /** First page. */ gfn: Gfn,
        /** How many, at most 512. */ pages: u64,
    } -> Done;
    /// Promise a VM more of the memory that it may have: it is sure to get so many pages more. `Exhausted` if others were promised
    /// what there is, `Range` if it may have no more than it was promised.
    Promise = 8 {
        /** A VM of the caller's. */ vm: VmId,
        /** How many. */ pages: u64,
    } -> Done;
    /// Promise a VM less: of what it was promised and hasn't, so many pages, or all there are of these.
    Unpromise = 9 {
        /** A VM of the caller's. */ vm: VmId,
        /** How many. */ pages: u64,
    } -> Done;
    /// What is needed of VMs with a balloon: for their vmms to ask when [`NEED`] rings.
    Need = 10 { /** A VM of the caller's. */ vm: VmId } -> Needed;
    /// How memory stands. Anybody may ask.
    Report = 3 {} -> MemoryReport;
    /// How a VM's frames stand.
    FramesOf = 16 { /** A VM of the caller's. */ vm: VmId } -> VmFrames;
    /// What notifier did for a VM: its [`NoticesOf`](crate::notifier::NoticesOf), which a vmm may not ask it itself.
    /// `Unsupported` where nobody answers.
    NoticesOf = 17 { /** A VM of the caller's. */ vm: VmId } -> VmNotices;
    /// Make, change or delete a slot. A VM is made with slot 0, which shows the VM's own region, page by page, in all of its
    /// guest memory. What was mapped in a slot that is deleted or moved is given back first, at most 512 pages a
    /// call; the same request goes on with it.
    ///
    /// Without pages: deletes the slot (`Invalid` if there is none). Of a slot that exists, only the guest frame and
    /// [`SlotFlags::LOG_DIRTY`] can be changed, and nothing of one with a gmem: `Invalid` otherwise. `Invalid` for guest frames or
    /// pages of the region past its end, too; `Exists` where another slot is; `NotFound` for a region or gmem that isn't the VM's.
    /// `Busy` while another slot of the VM is being deleted or moved, or a `Discard` goes on. `Unsupported` for
    /// memory whose caches this machine can't flush. `Exhausted` if no slot is left. With [`SlotFlags::GMEM`], `Invalid` for pages of the
    /// gmem that another slot shows.
    SlotSet = 5 {
        /** A VM of the caller's. */ vm: VmId,
        /** Which. */ slot: SlotId,
        /** What it is to be. */ flags: SlotFlags,
        /** Its first guest frame. */ gfn: Gfn,
        /** Its length; 0 deletes it. */ pages: u64,
        /** What it shows there. */ host: HostAddress,
        /** And of private memory; the first page of gmem 0 without [`SlotFlags::GMEM`]. */ gmem: GmemAddress,
    } -> Progress;
    /// The slot with this id, or the next that exists. `NotFound` past the last.
    SlotInfo = 6 {
        /** A VM of the caller's. */ vm: VmId,
        /** Where to look from. */ slot: SlotId,
    } -> SlotReport;
    /// Take the memory behind host addresses, wherever slots show it, at most 512 pages a call; the same request goes on with
    /// it. What the VM was promised becomes less by that. Nothing happens where no slot shows it. `Busy`
    /// while another range of the VM's is under way; `NotFound` for a region that isn't the VM's.
    Discard = 7 {
        /** A VM of the caller's. */ vm: VmId,
        /** First page. */ start: HostAddress,
        /** How many. */ pages: u64,
    } -> Progress;
    /// What this machine can do of what KVM's capability of this number stands for. Anybody may ask.
    Capability = 18 { /** As Linux's interface has it. */ number: u32 } -> CapabilityReport;
    /// Make a gmem: private memory without a host address, for slots of one VM to show. `Invalid` for flags, of which there are none,
    /// and for a length that is 0 or not whole pages; `Exhausted` if there are too many.
    GmemMake = 20 {
        /** A VM of the caller's. */ vm: VmId,
        /** 0. */ flags: u64,
        /** Its length. */ bytes: u64,
    } -> GmemMade;
    /// Give a gmem up. `Busy` while a slot shows it; `NotFound` if it isn't the VM's.
    GmemDrop = 21 {
        /** A VM of the caller's. */ vm: VmId,
        /** Which. */ gmem: GmemId,
    } -> Done;
    /// Make guest frames private, or shared again, at most 512, where slots with a gmem show all of them (`NotFound`). What is there turns
    /// in place: the caller reaches it only while it is shared. A plain VM's contents stay, an encrypted VM's are lost.
    /// `Exhausted`, and nothing is done, if there is no room to note it. What the kernel refuses else ends it: ask again.
    Attribute = 22 {
        /** A VM of the caller's. */ vm: VmId,
        /** First page. */ gfn: Gfn,
        /** How many, at most 512. */ pages: u64,
        /** What they are to be. */ private: bool,
    } -> Done;
    /// Back private pages of a plain VM with the contents of the leased ones: how many were filled. If none was, why: `BadLease` for
    /// pages that weren't lent or can't be read, `State` for a shared one, `Exists` for one that is there,
    /// `Poisoned`, `NotFound`, `Exhausted`; `Unsupported` for an encrypted VM, whose processor takes contents at its launch.
    Fill = 23 {
        /** A VM of the caller's. */ vm: VmId,
        /** First page. */ gfn: Gfn,
        /** How many, not more than are leased. */ pages: u64,
    } -> Filled;
    /// Take the private memory behind pages of a gmem, at most 512 pages a call: how many were looked at; go on after
    /// those. What is shared stays. `Invalid` for no page or a range that wraps; `NotFound` for a gmem that isn't the VM's.
    Punch = 24 {
        /** A VM of the caller's. */ vm: VmId,
        /** First page. */ at: GmemAddress,
        /** How many. */ pages: u64,
    } -> Punched;
    /// The memory behind a guest frame that a slot with a gmem shows is broken: nobody sees or gets it any more, and the page is
    /// `Poisoned` until a hole is punched there.
    Poison = 25 {
        /** A VM of the caller's. */ vm: VmId,
        /** Which. */ gfn: Gfn,
    } -> Done;
}

/// What memory posts to notifier when frames left a VM: a slot of their ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
pub struct Reclaimed {
    /// The VM, as [`VmId::bits`].
    pub vm: u32,
    /// The batch, as `BatchId.0`.
    pub batch: u32,
    /// First page of the range.
    pub gfn: u64,
    /// Pages that were taken.
    pub pages: u64,
}
