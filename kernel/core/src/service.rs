//! A service as the kernel knows it.
//!
//! Fields that change are atomics. Those of a call (`caller`, `context`, `rip`, `rsp`) are written only by the CPU
//! whose context has the service's turn; the turn's own ordering publishes them.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use caisson_proto::addr::ServiceId;
use caisson_proto::bundle::ServiceRecord;
use caisson_proto::kernel::{Caps, FaultKind, ServiceState};

use crate::bells::Bells;
use crate::context::Context;
use crate::turn::Turn;

/// Who waits for a service's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody: it waits for messages, or never ran.
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

const NONE: u32 = 0xffff_ffff;
const START: u32 = caisson_proto::abi::sender::START;
const DOORBELL: u32 = caisson_proto::abi::sender::DOORBELL;
const VCPU: u32 = caisson_proto::abi::sender::VCPU;

impl Caller {
    /// The sender field that the service sees.
    pub const fn sender(self) -> u32 {
        match self {
            Self::None => NONE,
            Self::Start => START,
            Self::Doorbell => DOORBELL,
            Self::Vcpu => VCPU,
            Self::Service(id) => id.bits(),
        }
    }

    /// The caller that a sender field stands for.
    pub const fn from_sender(sender: u32) -> Self {
        match sender {
            NONE => Self::None,
            START => Self::Start,
            DOORBELL => Self::Doorbell,
            VCPU => Self::Vcpu,
            id => Self::Service(ServiceId::from_bits(id)),
        }
    }
}

/// Why a service isn't running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epitaph {
    /// Its state since.
    pub state: ServiceState,
    /// The kind of a fault.
    pub fault: FaultKind,
    /// As in [`ServiceReport`](caisson_proto::kernel::ServiceReport).
    pub code: u64,
    /// As in `ServiceReport`.
    pub rip: u64,
    /// As in `ServiceReport`.
    pub address: u64,
    /// As in `ServiceReport`.
    pub rsp: u64,
    /// As in `ServiceReport`.
    pub client: u64,
}

impl Epitaph {
    /// Of a service in this state that did nothing wrong.
    pub const fn plain(state: ServiceState) -> Self {
        Self { state, fault: FaultKind::None, code: 0, rip: 0, address: 0, rsp: 0, client: 0 }
    }
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
    caps: AtomicU32,
    /// Milliseconds that one request may take.
    pub budget_ms: AtomicU32,
    /// Whether it may handle a VM.
    pub is_vmm: AtomicU8,
    id: AtomicU32,
    alive: AtomicU8,
    doomed: AtomicU8,
    caller: AtomicU32,
    context: AtomicU16,
    /// Where it goes on: after its last wait, or after the call that it made.
    pub rip: AtomicU64,
    /// Its stack pointer there.
    pub rsp: AtomicU64,
    /// Whether pages are lent to it now.
    pub borrows: AtomicU8,
    /// Doorbells that rang and were not taken; the first message, whose activation has the turn already.
    pub bells: Bells,
    /// When its timer rings; 0 for never.
    pub timer: AtomicU64,
    /// Its last end.
    pub epitaph: spin::Mutex<Epitaph>,
}

impl Service {
    /// A slot without a service.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            turn: Turn::new(),
            may_call: AtomicU64::new(0),
            may_ring: AtomicU64::new(0),
            caps: AtomicU32::new(0),
            budget_ms: AtomicU32::new(0),
            is_vmm: AtomicU8::new(0),
            id: AtomicU32::new(0),
            alive: AtomicU8::new(0),
            doomed: AtomicU8::new(0),
            caller: AtomicU32::new(NONE),
            context: AtomicU16::new(0),
            rip: AtomicU64::new(0),
            rsp: AtomicU64::new(0),
            borrows: AtomicU8::new(0),
            bells: Bells::new(),
            timer: AtomicU64::new(0),
            epitaph: spin::Mutex::new(Epitaph::plain(ServiceState::Unstarted)),
        }
    }

    /// Takes its authority from its record.
    pub fn configure(&self, slot: usize, record: &ServiceRecord) {
        self.id.store(ServiceId::new(slot as u16, 0).bits(), Ordering::Relaxed);
        self.may_call.store(record.may_call, Ordering::Relaxed);
        self.may_ring.store(record.may_ring, Ordering::Relaxed);
        self.caps.store(record.caps, Ordering::Relaxed);
        self.budget_ms.store(record.budget_ms.max(1), Ordering::Relaxed);
        self.is_vmm.store(u8::from(record.is_vmm == 1), Ordering::Relaxed);
    }

    /// Its present id.
    #[inline]
    pub fn id(&self) -> ServiceId {
        ServiceId::from_bits(self.id.load(Ordering::Acquire))
    }

    /// Its capabilities.
    pub fn caps(&self) -> Caps {
        Caps::from_bits_truncate(self.caps.load(Ordering::Relaxed))
    }

    /// Whether it runs.
    #[inline]
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire) != 0
    }

    /// Whether it is to die as soon as the chain that it is in comes back to it.
    #[inline]
    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst) != 0
    }

    /// Condemns it. Returns whether it wasn't yet.
    pub fn doom(&self) -> bool {
        self.doomed.swap(1, Ordering::SeqCst) == 0
    }

    /// Starts a life.
    pub fn revive(&self, entry: u64, stack: u64) {
        self.rip.store(entry, Ordering::Relaxed);
        self.rsp.store(stack, Ordering::Relaxed);
        self.timer.store(0, Ordering::Relaxed);
        self.doomed.store(0, Ordering::Relaxed);
        self.borrows.store(0, Ordering::Relaxed);
        // Before it is alive: whoever sees it alive also sees that the first message is still to come.
        self.bells.refresh();
        *self.epitaph.lock() = Epitaph::plain(ServiceState::Running);
        self.alive.store(1, Ordering::Release);
    }

    /// Ends a life: the id moves on, so that messages to the old one are refused. Generations have 15 bits.
    pub fn bury(&self, epitaph: Epitaph) {
        *self.epitaph.lock() = epitaph;
        self.alive.store(0, Ordering::Release);
        let id = self.id();
        let next = ServiceId::new(id.index() as u16, (id.generation() + 1) & 0x7fff);
        self.id.store(next.bits(), Ordering::Release);
    }

    /// Who waits for its reply.
    #[inline]
    pub fn caller(&self) -> Caller {
        Caller::from_sender(self.caller.load(Ordering::Relaxed))
    }

    /// On whose time it runs.
    #[inline]
    pub fn context(&self) -> Option<Context> {
        Context::from_number(self.context.load(Ordering::Relaxed))
    }

    /// Notes for whom it runs now.
    #[inline]
    pub fn serve(&self, caller: Caller, context: Context) {
        self.caller.store(caller.sender(), Ordering::Relaxed);
        self.context.store(context.number(), Ordering::Relaxed);
    }

    /// Notes that it serves nobody.
    #[inline]
    pub fn served(&self) {
        self.caller.store(NONE, Ordering::Relaxed);
    }
}

#[cfg(not(loom))]
impl Default for Service {
    fn default() -> Self {
        Self::new()
    }
}
