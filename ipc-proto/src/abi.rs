//! The system-call boundary: numbers, registers, status and limits.
//!
//! A call is `syscall` with
//!
//! | register | in | out |
//! |---|---|---|
//! | rax | [`Syscall`] in bits 7:0; of a call: the target's slot in bits 31:16, its generation in 47:32; of a ring: the slot; of a reply: its [`Status`] in bits 31:16 | [`Status`] in bits 15:0, sender in bits 63:32 |
//! | rdi rsi rdx r10 r8 r9 r12 r13 | the eight words | the eight words |
//! | rbx | lease: see [`Lease`]; 0 for none | lease as the receiver sees it |
//! | rcx r11 rbp r14 r15 | | undefined (rcx, r11), zero (the others) on delivery of a message |
//!
//! A call to an older generation fails with [`Status::Dead`], and word 0 is the id to use from then on. Generations
//! start at 0 and have 15 bits. A new service has its first message, [`Sender::START`], in its registers at its
//! entry point, with rsp = [`STACK_TOP`](crate::layout::STACK_TOP).
//!
//! The kernel keeps the stack pointer and the return address of a caller, nothing else: the stub saves what it
//! needs on its own stack.

use crate::addr::{Sender, ServiceId, VPage};

/// Physical CPUs at the most, on any board. Fewer where loom makes each of their atomics anew for each order that it tries.
pub const MAX_CPUS: usize = if cfg!(loom) { 2 } else { 512 };
/// Services at the most, the vmms counted.
pub const MAX_SERVICES: usize = 64;
/// VMs at the most.
pub const MAX_VMS: usize = if cfg!(loom) { 16 } else { 48 };
/// vCPUs of one VM at the most.
pub const MAX_VCPUS: usize = 8;
/// Views (nested page-table roots) of one VM at the most.
pub const MAX_VIEWS: usize = 4;
/// Pages that one kernel operation maps, unmaps or frees at the most.
pub const MAX_PAGES_PER_CALL: u64 = 512;
/// Pages that one lease lends at the most.
pub const MAX_LEASE_PAGES: u64 = 16;
/// Slot of the kernel as the target of a call.
pub const KERNEL_SLOT: u16 = 0xffff;

wire_enum! {
    /// System-call numbers. Call: a service or the kernel, and wait for the reply. Reply: to the request being served, then wait
    /// for the next. Ring: a doorbell, target's slot in rax, bits in word 0; it never waits. Null: nothing, for measuring. Exit:
    /// end this service, where word 0 is an [`ExitKind`](crate::supervisor::ExitKind) and words 1 to 6 tell more.
    pub enum Syscall { Call = 0, Reply = 1, Ring = 2, Null = 3, Exit = 4 }
}

wire_enum! {
    /// How a call ended. Anything but `Ok` means that nothing was changed.
    ///
    /// | status | what it says |
    /// |---|---|
    /// | `Ok` | done; the words are the reply |
    /// | `Denied` | the caller's capabilities don't include this |
    /// | `Downhill` | the call would go down the ranks |
    /// | `Dead` | the id is of an older generation; word 0 is the id of the present holder of the slot |
    /// | `Malformed` | the words are no message of this interface; the sender is at fault |
    /// | `Busy` | not now: something it depends on is open; try again after it closed |
    /// | `Exhausted` | no frame, table entry or budget is left for this |
    /// | `NotFound` | nothing of that name exists |
    /// | `State` | it exists and is in a state in which this isn't possible |
    /// | `Range` | a number or range is outside what this operation accepts |
    /// | `Unsupported` | this machine can't do that |
    /// | `Stale` | the commit came with a stale invalidation sequence; fault again |
    /// | `BadLease` | the pages lent are not the lender's, or not there |
    /// | `Died` | the receiver died while it served this |
    /// | `TooWeak` | what was asked for is weaker than the rule demands |
    /// | `Invalid` | the request contradicts itself, or what exists can't be changed so |
    /// | `Exists` | something else is there already |
    /// | `Poisoned` | the memory behind it is broken |
    /// | `Unbound` | what it was bound to isn't there any more |
    pub enum Status {
        Ok = 0, Denied = 1, Downhill = 2, Dead = 3, Malformed = 4, Busy = 5, Exhausted = 6, NotFound = 7, State = 8, Range = 9,
        Unsupported = 10, Stale = 11, BadLease = 12, Died = 13, TooWeak = 14,
        Invalid = 15, Exists = 16, Poisoned = 17, Unbound = 18,
    }
}

impl Sender {
    /// The service's first run: set up, then wait. No words.
    pub const START: Self = Self(0x8000_0000);
    /// Doorbells rang: word 0 has their bits.
    pub const DOORBELL: Self = Self(0x8000_0001);
    /// A vCPU of this vmm left its guest: the words are a [`crate::vcpu::Exit`].
    pub const VCPU: Self = Self(0x8000_0002);
    /// Nobody. Never delivered.
    pub const NONE: Self = Self(u32::MAX);

    /// The service, in this generation, that made a call.
    pub fn service(self) -> Option<ServiceId> {
        (self.0 >> 31 == 0).then_some(ServiceId::from_bits(self.0))
    }
}

/// Doorbell bits that have one meaning everywhere. Bits 0 to 31 are the board's and the services' own.
pub mod doorbell {
    /// A service died (to the supervisor).
    pub const SERVICE_DIED: u64 = 1 << 63;
    /// A ticket's work is done (to the service that asked for it, and to memory).
    pub const TICKET: u64 = 1 << 62;
    /// The time set with `TimerSet` has come.
    pub const TIMER: u64 = 1 << 61;
    /// The device interrupt which the manifest gives this service.
    pub const INTERRUPT: u64 = 1 << 60;
    /// A VM's handler died, or a VM is otherwise to be reclaimed (to memory).
    pub const VM_GONE: u64 = 1 << 59;
    /// A command was rung (to the service that stands in for the secure processor).
    pub const MAILBOX: u64 = 1 << 57;
    /// All frames of dead VMs are free again (memory to supervisor).
    pub const SETTLED: u64 = 1 << 58;
}

/// Pages lent for the length of one call, as they stand in rbx: first page in bits 51:0, count − 1 in bits 61:56,
/// write permission in bit 62, present in bit 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The first page, in the lender's space on the way in, in the receiver's lease window on delivery.
    pub page: VPage,
    /// How many pages; 1 to [`MAX_LEASE_PAGES`].
    pub pages: u64,
    /// Whether the receiver may write.
    pub write: bool,
}

impl Lease {
    /// The register form.
    pub const fn to_word(self) -> u64 {
        1 << 63 | (self.write as u64) << 62 | (self.pages - 1) << 56 | self.page.0
    }

    /// The lease in `word`: `Ok(None)` for zero.
    ///
    /// # Errors
    /// [`Malformed`](crate::wire::Malformed) for anything that isn't canonical.
    pub fn from_word(word: u64) -> Result<Option<Self>, crate::wire::Malformed> {
        if word == 0 {
            return Ok(None);
        }
        let lease =
            Self { page: VPage(word & ((1 << 52) - 1)), pages: (word >> 56 & 0x3f) + 1, write: word >> 62 & 1 == 1 };
        let in_space = lease.page.0 + lease.pages <= crate::layout::USER_END >> 12;
        if lease.to_word() == word && lease.pages <= MAX_LEASE_PAGES && in_space {
            Ok(Some(lease))
        } else {
            Err(crate::wire::Malformed)
        }
    }
}
