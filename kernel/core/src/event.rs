//! What the kernel tells its log. Plain data: the machine layer gives it words.

use crate::prelude::*;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(target_os = "none", derive(defmt::Format))]
pub enum Event {
    /// A service was started.
    Started(ServiceId),
    /// A service faulted.
    Faulted {
        /// Who is to blame.
        service: ServiceId,
        /// What it did.
        kind: FaultKind,
        /// See [`FaultKind`].
        code: u64,
        /// Where.
        rip: u64,
        /// The address of a page fault.
        address: u64,
    },
    /// A service was killed.
    Killed(ServiceId),
    /// A service ended itself.
    Exited(ServiceId, u64),
    /// A service was refused something: word 0 of a kernel operation, rax of a call or doorbell, or a lease.
    Refused(ServiceId, u64, Status),
    /// A VM was made.
    VmMade(VmId, ServiceId),
    /// The last of a VM is gone.
    VmGone(VmId),
    /// A batch was paid; its frames are free.
    BatchPaid(BatchId, u64),
    /// A CPU wrote its caches back; by WBINVD, if that was asked for.
    WroteBack(CpuId, bool),
    /// The secure processor was rung.
    Rang(u16, VmId),
    /// It answered.
    Rung(u16, u16),
}
