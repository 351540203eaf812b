//! A service as the kernel knows it.
//!
//! Fields that change are atomics. Those of a call (`caller`, `context`, `rip`, `rsp`) are written only by the CPU
//! whose context has the service's turn; the turn's own ordering publishes them.

use crate::prelude::*;

/// The report of a service in this state that did nothing wrong.
pub const fn plain(id: ServiceId, state: ServiceState) -> ServiceReport {
    ServiceReport { id, state, fault: FaultKind::None, code: 0, rip: 0, address: 0, rsp: 0, client: 0 }
}

caisson_proto::wire_enum! {
    /// Whether a service runs: it doesn't; it does; it does, and is to die as soon as the chain that it is in comes back to
    /// it.
    pub enum Life { Dead = 0, Alive = 1, Doomed = 2 }
}

initial! {
    /// A service.
    pub struct Service {
        /// Who is served.
        pub turn: Turn = Turn::new(),
        /// Services that it may call, by slot.
        pub may_call: AtomicU64 = AtomicU64::new(0),
        /// Services that it may ring, by slot.
        pub may_ring: AtomicU64 = AtomicU64::new(0),
        /// Its capabilities.
        pub caps: Atomic<Caps> = Atomic::new(0),
        /// Milliseconds that one request may take.
        pub budget_ms: AtomicU32 = AtomicU32::new(0),
        /// Whether it may handle a VM.
        pub is_vmm: Atomic<bool> = Atomic::new(0),
        /// Its present id.
        pub id: Atomic<ServiceId> = Atomic::new(0),
        /// Whether it runs.
        pub life: Atomic<Life> = Atomic::new(Life::Dead as u64),
        /// Who waits for its reply.
        pub caller: Atomic<Sender> = Atomic::new(Sender::NONE.0 as u64),
        /// Where it goes on: after its last wait, or after the call that it made.
        pub rip: AtomicU64 = AtomicU64::new(0),
        /// Its stack pointer there.
        pub rsp: AtomicU64 = AtomicU64::new(0),
        /// For how long the watchdog has seen it at this request, by itself, in ticks.
        pub alone: AtomicU64 = AtomicU64::new(0),
        /// The same with all that it calls.
        pub spent: AtomicU64 = AtomicU64::new(0),
        /// How often it was refused something.
        pub refused: AtomicU32 = AtomicU32::new(0),
        /// How many pages are lent to it now.
        pub borrows: Atomic<u64> = Atomic::new(0),
        /// Doorbells that rang and were not taken; the first message, whose activation has the turn already.
        pub bells: Bells = Bells::new(),
        /// How it fares, and why.
        pub epitaph: spin::Mutex<ServiceReport> = spin::Mutex::new(plain(ServiceId::new(0, 0), ServiceState::Unstarted)),
    }
}

impl Service {
    /// Takes its authority from its record.
    pub fn configure(&self, slot: usize, record: &ServiceRecord) {
        self.id.set(ServiceId::new(slot as u16, 0));
        self.may_call.store(record.may_call, Ordering::Relaxed);
        self.may_ring.store(record.may_ring, Ordering::Relaxed);
        self.caps.set(Caps::from_bits_truncate(record.caps));
        self.budget_ms.store(record.budget_ms.max(1), Ordering::Relaxed);
        self.is_vmm.set(record.is_vmm == 1);
    }

    /// Where it goes on when it is entered next.
    pub fn goes_on_at(&self, rip: u64, rsp: u64) {
        self.rip.store(rip, Ordering::Relaxed);
        self.rsp.store(rsp, Ordering::Relaxed);
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        !self.life.is(Life::Dead)
    }

    /// Whether it runs, and is to die.
    pub fn is_doomed(&self) -> bool {
        self.life.is(Life::Doomed)
    }

    /// Condemns it. False: it was already, or doesn't run.
    pub fn condemn(&self) -> bool {
        self.life.change(Life::Alive, Life::Doomed)
    }

    /// Starts a life.
    pub fn revive(&self, entry: u64, stack: u64) {
        self.goes_on_at(entry, stack);
        // Before it is alive: whoever sees it alive also sees that the first message is still to come.
        self.bells.refresh();
        *self.epitaph.lock() = plain(self.id.get(), ServiceState::Running);
        self.life.set(Life::Alive);
    }

    /// Ends a life: the id moves on, so that messages to the old one are refused. Generations have 15 bits.
    pub fn bury(&self, epitaph: ServiceReport) {
        *self.epitaph.lock() = epitaph;
        self.life.set(Life::Dead);
        let id = self.id.get();
        self.id.set(ServiceId::new(id.index() as u16, (id.generation() + 1) & 0x7fff));
    }
}
