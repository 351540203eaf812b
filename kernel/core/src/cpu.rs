//! What each CPU has to itself, and the user context that a kernel entry leaves behind.

use crate::prelude::*;

/// The registers of a service at a system call, and those with which a service is entered. `kernel/hw` stores and
/// loads them; the layout is known to its assembly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UserFrame {
    /// See the register table of [`caisson_proto::abi`].
    pub rax: u64,
    /// rdi rsi rdx r10 r8 r9 r12 r13.
    pub words: Words,
    /// The lease.
    pub rbx: u64,
    /// Where it goes on.
    pub rip: u64,
    /// Its stack pointer.
    pub rsp: u64,
}

initial! {
    /// State that only its own CPU touches, with interrupts off.
    pub struct Local(cpu: CpuId) {
        /// This CPU.
        pub cpu: CpuId = cpu,
        /// Whose time is being spent: the context at the root of the present call chain.
        pub context: Cell<Option<Context>> = Cell::new(None),
        /// Slot of the service that is in user mode, or was when the kernel was entered.
        pub service: Cell<u16> = Cell::new(NO_SERVICE),
        /// Contexts that can run here.
        pub ready: Set = Set::new(),
        /// Contexts that wait here although they have a service's turn: everybody else waits for them.
        pub granted: Set = Set::new(),
        /// Contexts with a deadline that this CPU's timer serves.
        pub timed: Set = Set::new(),
        /// The earliest of those deadlines, or later than `u64::MAX / 2` for none.
        pub next_deadline: Cell<u64> = Cell::new(NEVER),
        /// When the running vCPU's slice ends; 0 while it has no rival.
        pub slice_end: Cell<u64> = Cell::new(0),
        /// The vCPU that ran last, for the round robin.
        pub last: Cell<u16> = Cell::new(0),
        /// Doorbell activations since a vCPU had the CPU.
        pub bells: Cell<u8> = Cell::new(0),
        /// When the watchdog looked last.
        pub seen_at: Cell<u64> = Cell::new(0),
    }
}

/// No service.
pub const NO_SERVICE: u16 = u16::MAX;
/// No deadline.
pub const NEVER: u64 = u64::MAX;
