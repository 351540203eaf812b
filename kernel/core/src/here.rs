//! The kernel as one CPU sees it: the shared tables, what this CPU has to itself, and the machine under it.

use crate::prelude::*;

/// Where the kernel runs now. Everything that happens in it is a method of this.
#[derive(Clone, Copy)]
pub struct Here<'a, M: Machine> {
    /// The shared tables.
    pub kernel: &'a Kernel,
    /// This CPU's own.
    pub local: &'a Local,
    /// The machine.
    pub machine: M,
}

impl<M: Machine> Deref for Here<'_, M> {
    type Target = Kernel;
    fn deref(&self) -> &Kernel {
        self.kernel
    }
}

impl<'a, M: Machine> Here<'a, M> {
    /// What other CPUs may touch of this one.
    pub(crate) fn shared(self) -> &'a Shared {
        &self.kernel.cpus[usize::from(self.local.cpu.0) % MAX_CPUS]
    }

    /// The table lock. Whoever waits for it answers other CPUs meanwhile; nobody who holds it waits for it.
    pub fn tables(self) -> MutexGuard<'a, Tables> {
        loop {
            if let Some(guard) = self.kernel.tables.try_lock() {
                return guard;
            }
            self.machine.relax();
        }
    }

    /// Makes a context run on its CPU: at once here, by an interrupt elsewhere.
    pub fn wake(self, context: Context) {
        let home = CpuId(self.context(context).home.load(Ordering::Acquire));
        if home == self.local.cpu {
            self.make_ready(context);
        } else if let Some(cpu) = self.cpus.get(usize::from(home.0)) {
            cpu.woken.put(context);
            self.machine.interrupt_cpu(home);
        }
    }

    /// Lets a context run on this CPU, before others if it has a service's turn.
    pub(crate) fn make_ready(self, context: Context) {
        let granted = self.context(context).pending.load(Ordering::SeqCst) & pending::GRANTED != 0;
        let set = if granted { &self.local.granted } else { &self.local.ready };
        set.insert(context);
    }

    /// Rings doorbells of a service. Its activation runs here, after the present call chain.
    pub fn ring(self, slot: usize, bits: u64) {
        let Some(service) = self.services.get(slot) else { return };
        service.bells.ring(bits);
        if service.is_alive() && service.bells.queue() {
            self.activate_here(slot);
        }
    }

    /// Makes a service's activation, which was queued just now, run here.
    pub(crate) fn activate_here(self, slot: usize) {
        let context = Context::doorbell(slot);
        let state = self.context(context);
        state.home.store(self.local.cpu.0, Ordering::SeqCst);
        state.phase.swap(Phase::Ready);
        self.wake(context);
    }

    /// Rings every service that has one of these capabilities.
    pub(crate) fn ring_all(self, caps: Caps, bits: u64) {
        let has = |slot: &usize| self.service(*slot).caps.get().intersects(caps);
        (0..self.service_count()).filter(has).for_each(|slot| self.ring(slot, bits));
    }

    /// Completes when a vCPU that is in its guest has left it once.
    pub(crate) fn expel(self, context: Context) {
        let state = self.context(context);
        let world = state.world();
        while world & 1 == 1 && state.world() == world {
            self.machine.interrupt_cpu(CpuId(state.home.load(Ordering::SeqCst)));
            self.machine.relax();
        }
    }
}
