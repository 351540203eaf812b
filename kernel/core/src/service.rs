//! A service as the kernel knows it.
//!
//! Fields that change are atomics. Those of a call (`caller`, `context`, `rip`, `rsp`) are written only by the CPU
//! whose context has the service's turn; the turn's own ordering publishes them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{bells::Bells, sync::Atomic, turn::Turn};
use caisson_proto::prelude::*;

/// Who waits for a service's reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// Nobody: it waits for messages, or never ran.
    #[default]
    None,
    /// It was started and has not waited for a message yet.
    Start,
    /// Its doorbells.
    Doorbell,
    /// A vCPU of its VM.
    Vcpu,
    /// A service, in this generation.
    Service(ServiceId),
}

const NONE: u64 = u32::MAX as u64;
const START: u64 = sender::START as u64;
const DOORBELL: u64 = sender::DOORBELL as u64;
const VCPU: u64 = sender::VCPU as u64;

/// The word is the sender field that the service sees.
impl Field for Caller {
    #[inline]
    fn to_word(self) -> u64 {
        match self {
            Self::None => NONE,
            Self::Start => START,
            Self::Doorbell => DOORBELL,
            Self::Vcpu => VCPU,
            Self::Service(id) => id.to_word(),
        }
    }
    #[inline]
    fn from_word(word: u64) -> Option<Self> {
        Some(match word {
            NONE => Self::None,
            START => Self::Start,
            DOORBELL => Self::Doorbell,
            VCPU => Self::Vcpu,
            id => Self::Service(ServiceId::from_bits(id as u32)),
        })
    }
}

/// The report of a service in this state that did nothing wrong.
pub const fn plain(id: ServiceId, state: ServiceState) -> ServiceReport {
    ServiceReport { id, state, fault: FaultKind::None, code: 0, rip: 0, address: 0, rsp: 0, client: 0 }
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Who is served.
    pub turn: Turn,
    /// Services that it may call, by slot.
    pub may_call: AtomicU64,
    /// Services that it may ring, by slot.
    pub may_ring: AtomicU64,
    /// Its capabilities.
    pub caps: Atomic<Caps>,
    /// Milliseconds that one request may take.
    pub budget_ms: AtomicU32,
    /// Whether it may handle a VM.
    pub is_vmm: Atomic<bool>,
    /// Its present id.
    pub id: Atomic<ServiceId>,
    /// Whether it runs.
    pub alive: Atomic<bool>,
    /// Whether it is to die as soon as the chain that it is in comes back to it.
    pub doomed: Atomic<bool>,
    /// Who waits for its reply.
    pub caller: Atomic<Caller>,
    /// Where it goes on: after its last wait, or after the call that it made.
    pub rip: AtomicU64,
    /// Its stack pointer there.
    pub rsp: AtomicU64,
    /// Whether pages are lent to it now.
    pub borrows: Atomic<bool>,
    /// Doorbells that rang and were not taken; the first message, whose activation has the turn already.
    pub bells: Bells,
    /// When its timer rings; 0 for never.
    pub timer: AtomicU64,
    /// How it fares, and why.
    pub epitaph: spin::Mutex<ServiceReport>,
}

impl Service {
    /// A slot without a service.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            turn: Turn::new(),
            may_call: AtomicU64::new(0),
            may_ring: AtomicU64::new(0),
            caps: Atomic::new(0),
            budget_ms: AtomicU32::new(0),
            is_vmm: Atomic::new(0),
            id: Atomic::new(0),
            alive: Atomic::new(0),
            doomed: Atomic::new(0),
            caller: Atomic::new(NONE),
            rip: AtomicU64::new(0),
            rsp: AtomicU64::new(0),
            borrows: Atomic::new(0),
            bells: Bells::new(),
            timer: AtomicU64::new(0),
            epitaph: spin::Mutex::new(plain(ServiceId::new(0, 0), ServiceState::Unstarted)),
        }
    }

    /// Takes its authority from its record.
    pub fn configure(&self, slot: usize, record: &ServiceRecord) {
        self.id.set(ServiceId::new(slot as u16, 0));
        self.may_call.store(record.may_call, Ordering::Relaxed);
        self.may_ring.store(record.may_ring, Ordering::Relaxed);
        self.caps.set(Caps::from_bits_truncate(record.caps));
        self.budget_ms.store(record.budget_ms.max(1), Ordering::Relaxed);
        self.is_vmm.set(record.is_vmm == 1);
    }

    /// Starts a life.
    pub fn revive(&self, entry: u64, stack: u64) {
        self.rip.store(entry, Ordering::Relaxed);
        self.rsp.store(stack, Ordering::Relaxed);
        self.timer.store(0, Ordering::Relaxed);
        self.doomed.set(false);
        self.borrows.set(false);
        // Before it is alive: whoever sees it alive also sees that the first message is still to come.
        self.bells.refresh();
        *self.epitaph.lock() = plain(self.id.get(), ServiceState::Running);
        self.alive.set(true);
    }

    /// Ends a life: the id moves on, so that messages to the old one are refused. Generations have 15 bits.
    pub fn bury(&self, epitaph: ServiceReport) {
        *self.epitaph.lock() = epitaph;
        self.alive.set(false);
        let id = self.id.get();
        self.id.set(ServiceId::new(id.index() as u16, (id.generation() + 1) & 0x7fff));
    }
}
