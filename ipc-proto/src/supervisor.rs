//! supervisor: starts, restarts and buries services. It calls none of them.

use crate::abi::Status;
use crate::wire::Done;

/// Errors are [`Status`] values.
pub type Error = Status;

requests! {
    /// Every request to the supervisor. Whoever may call it can end any service: the manifests of real machines let
    /// nobody, those of tests their agent.
    pub enum SupervisorCall;

    /// End the service in this slot as if it had failed: what follows is what follows a death. The supervisor itself
    /// too. `State` if it doesn't run.
    End = 1 { slot: u16 } -> Done;
    /// Forget how often the service in this slot was restarted. `NotFound` if there is none.
    Forgive = 2 { slot: u16 } -> Done;
}

wire_enum! {
    /// Why a service ended itself; word 0 of `Exit`.
    pub enum ExitKind {
        /// Its VM was powered off by the guest.
        PoweredOff = 0,
        /// Its VM asked for a reset.
        Reset = 1,
        /// Its VM crashed: words 1 to 4 are [`CrashKind`], vCPU, rip, and a detail.
        Crashed = 2,
        /// It can't work as configured: word 1 is a [`SetupError`].
        BadSetup = 3,
        /// It panicked. The log has the text.
        Panicked = 4,
        /// Its VM ended itself by the debug exit: word 1 is what it wrote.
        TestEnded = 5,
    }
}

wire_enum! {
    /// How a guest crashed.
    pub enum CrashKind {
        /// Triple fault or other shutdown.
        TripleFault = 0,
        /// The processor refused its state.
        InvalidState = 1,
        /// It used something that the vmm can't emulate. Detail: the exit code.
        Unemulated = 2,
        /// The guest reported a panic.
        Panic = 3,
        /// Every vCPU is halted with interrupts off: nothing can wake it.
        Hung = 4,
        /// It wanted more memory than it was promised, and none was left. Detail: the address.
        NoMemory = 5,
    }
}

wire_enum! {
    /// Why a VM could not be set up.
    pub enum SetupError {
        /// Its configuration can't be read.
        Config = 0,
        /// Its kernel image is none that can be booted.
        Kernel = 1,
        /// memory refused it.
        Memory = 2,
        /// The kernel refused it.
        Vcpu = 3,
        /// Kernel, initrd and tables don't fit its memory.
        TooSmall = 4,
        /// It couldn't be launched as an encrypted VM: the log says what sev-firmware answered.
        Launch = 5,
    }
}

pub use crate::kernel::verdict;

/// What the supervisor posts to the console for the host, and the console sends as it is on the system channel:
/// how a VM or a service ended. Little endian, 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
pub struct Notice {
    /// [`ServiceState`](crate::kernel::ServiceState) of the service now.
    pub state: u8,
    /// [`ExitKind`] where it exited, [`FaultKind`](crate::kernel::FaultKind) where it faulted.
    pub kind: u8,
    /// Slot of the service.
    pub slot: u16,
    /// What will be done: 0 nothing, 1 restarted.
    pub action: u8,
    /// Zero.
    pub spare: [u8; 3],
    /// As in [`ServiceReport`](crate::kernel::ServiceReport).
    pub code: u64,
    /// As in `ServiceReport`.
    pub rip: u64,
    /// As in `ServiceReport`.
    pub address: u64,
}
const _: () = assert!(size_of::<Notice>() == 32);
