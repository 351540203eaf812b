//! Which context runs on this CPU, and until when.
//!
//! Mechanism only: a context stays on its CPU. Doorbell activations come before vCPUs, the highest rank first;
//! vCPUs take turns in slices. A service is never preempted by another context: what bounds it is its budget.

use core::sync::atomic::Ordering;

use caisson_proto::abi::doorbell;
use caisson_proto::kernel::FaultKind;
use caisson_proto::vcpu::{Exit, code};

use crate::context::{Context, Kind, Phase, Stashed, WORDS, pending};
use crate::cpu::{Local, NEVER, NO_SERVICE, UserFrame};
use crate::ipc::Next;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::service::Caller;

/// A vCPU's slice where others wait, in milliseconds.
pub const SLICE_MS: u64 = 5;
/// How often the watchdog looks at a CPU that doesn't idle, in milliseconds.
pub const WATCH_MS: u64 = 50;

/// What [`Kernel::pick`] chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Enter the service that the frame describes.
    User,
    /// Enter this vCPU's guest.
    Guest(Context),
    /// Nothing to do: wait for an interrupt.
    Idle,
}

impl Kernel {
    /// Chooses what this CPU does next.
    pub fn pick<M: Machine>(&self, local: &Local, machine: &M, frame: &mut UserFrame) -> Choice {
        loop {
            self.collect(local);
            if let Some(context) = local.context.get() {
                if !self.must_yield(local, machine) {
                    match self.before_entry(local, machine, frame, context) {
                        Some(choice) => return choice,
                        None => continue,
                    }
                }
                self.context(context).set_phase(Phase::Ready);
                self.make_ready(local, context);
                local.context.set(None);
            }
            let Some(context) = self.next_ready(local) else { return Choice::Idle };
            if self.begin(local, machine, frame, context) == Next::User {
                return Choice::User;
            }
        }
    }

    /// Takes over what other CPUs woke here.
    fn collect(&self, local: &Local) {
        if let Some(shared) = self.cpus.get(usize::from(local.cpu.0)) {
            for (ready, woken) in local.ready.iter().zip(&shared.woken) {
                if woken.load(Ordering::Relaxed) != 0 {
                    ready.set(ready.get() | woken.swap(0, Ordering::SeqCst));
                }
            }
        }
    }

    fn make_ready(&self, local: &Local, context: Context) {
        if let Some(word) = local.ready.get(context.index() / 64) {
            word.set(word.get() | 1 << (context.index() % 64));
        }
    }

    /// Whether the running vCPU makes room: for a service's doorbells at once, for another vCPU after its slice.
    fn must_yield<M: Machine>(&self, local: &Local, machine: &M) -> bool {
        if local.ready[0].get() != 0 {
            return true;
        }
        let rivals = local.ready.iter().any(|word| word.get() != 0);
        match (rivals, local.slice_end.get()) {
            (false, 0) => false,
            (false, _) => {
                local.slice_end.set(0);
                false
            }
            (true, 0) => {
                local.slice_end.set(machine.now() + SLICE_MS * machine.facts().tsc_khz);
                self.arm(local, machine);
                false
            }
            (true, end) => machine.now() >= end,
        }
    }

    /// Takes the next context out of the ready set: the highest doorbell, else the next vCPU round the circle.
    fn next_ready(&self, local: &Local) -> Option<Context> {
        let bells = &local.ready[0];
        if bells.get() != 0 {
            let slot = 63 - bells.get().leading_zeros() as usize;
            bells.set(bells.get() & !(1 << slot));
            return Some(Context::doorbell(slot));
        }
        let from = usize::from(local.last.get()) + 1;
        for step in 0..=WORDS {
            let index = (from / 64 + step) % WORDS;
            let word = local.ready.get(index)?;
            let mask = if step == 0 { u64::MAX << (from % 64) } else { u64::MAX };
            let bits = word.get() & mask;
            if bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                word.set(word.get() & !(1 << bit));
                return Context::from_number((index * 64 + bit) as u16);
            }
        }
        None
    }

    /// Makes a context the running one.
    fn begin<M: Machine>(
        &self,
        local: &Local,
        machine: &M,
        frame: &mut UserFrame,
        context: Context,
    ) -> Next {
        let state = self.context(context);
        if state.phase() == Phase::Waiting {
            if state.pending.fetch_and(!pending::GRANTED, Ordering::SeqCst) & pending::GRANTED == 0 {
                return Next::Pick;
            }
            state.set_phase(Phase::Running);
            local.context.set(Some(context));
            return self.deliver(local, machine, frame, context, &state.stashed());
        }
        match context.kind() {
            Kind::Doorbell(slot) => self.activate(local, machine, frame, slot, context),
            Kind::Vcpu(..) => {
                if state.change_phase(Phase::Ready, Phase::Running) {
                    local.context.set(Some(context));
                    local.last.set(context.number());
                    local.slice_end.set(0);
                }
                Next::Pick
            }
        }
    }

    /// Hands a service its doorbells, or its first message.
    fn activate<M: Machine>(
        &self,
        local: &Local,
        machine: &M,
        frame: &mut UserFrame,
        slot: usize,
        context: Context,
    ) -> Next {
        let service = self.service(slot);
        self.context(context).set_phase(Phase::Running);
        local.context.set(Some(context));
        let fresh = service.fresh.swap(0, Ordering::SeqCst) == 1;
        let bells = if fresh { 0 } else { service.bells.swap(0, Ordering::SeqCst) };
        let caller = if fresh { Caller::Start } else { Caller::Doorbell };
        if (!fresh && bells == 0) || !service.is_alive() {
            return self.answer(
                local,
                machine,
                frame,
                context,
                Caller::None,
                caisson_proto::abi::Status::Ok,
                &[0; 8],
            );
        }
        let words = [bells, 0, 0, 0, 0, 0, 0, 0];
        let call = Stashed { target: service.id(), caller, words, lease: 0 };
        if fresh {
            return self.deliver(local, machine, frame, context, &call);
        }
        self.send(local, machine, frame, context, &call)
    }

    /// The last look before a guest is entered. `None`: look again.
    fn before_entry<M: Machine>(
        &self,
        local: &Local,
        machine: &M,
        frame: &mut UserFrame,
        context: Context,
    ) -> Option<Choice> {
        let state = self.context(context);
        if state.pending.load(Ordering::SeqCst) == 0 {
            return Some(Choice::Guest(context));
        }
        let seen = state.pending.swap(0, Ordering::SeqCst);
        if seen & pending::STOP != 0 {
            state.set_phase(Phase::Idle);
            local.context.set(None);
            return None;
        }
        let code = if seen & pending::KICK != 0 { code::KICK } else { code::TIMER };
        match self.exit_with(local, machine, frame, context, code) {
            Next::User => Some(Choice::User),
            Next::Pick => None,
        }
    }

    /// Tells the vmm of something that isn't the guest's doing.
    fn exit_with<M: Machine>(
        &self,
        local: &Local,
        machine: &M,
        frame: &mut UserFrame,
        context: Context,
        code: u16,
    ) -> Next {
        let exit = machine.vcpu_moment(context, code);
        self.vm_exit(local, machine, frame, context, &exit)
    }

    /// A vCPU calls its vmm.
    #[inline]
    pub fn vm_exit<M: Machine>(
        &self,
        local: &Local,
        machine: &M,
        frame: &mut UserFrame,
        context: Context,
        exit: &Exit,
    ) -> Next {
        let handler = match context.kind() {
            Kind::Vcpu(vm, _) => self.vms.get(vm).map(crate::vms::Vm::handler),
            Kind::Doorbell(_) => None,
        };
        let Some(target) = handler else { return Next::Pick };
        let call = Stashed { target, caller: Caller::Vcpu, words: exit.to_words(), lease: 0 };
        self.send(local, machine, frame, context, &call)
    }

    /// A vCPU's vmm has answered (or died): sees to its deadline, and to kicks that came meanwhile.
    #[inline]
    pub(crate) fn answered<M: Machine>(&self, local: &Local, machine: &M, context: Context) {
        let state = self.context(context);
        let deadline = state.deadline.load(Ordering::Relaxed);
        if deadline != 0 {
            self.await_deadline(local, machine, context, deadline);
        }
        match state.phase() {
            Phase::Running => return,
            Phase::Parked if state.pending.load(Ordering::SeqCst) != 0 => {
                if state.change_phase(Phase::Parked, Phase::Ready) {
                    self.make_ready(local, context);
                }
            }
            _ => {}
        }
        local.context.set(None);
    }

    /// Makes this CPU's timer see a context's deadline.
    pub(crate) fn await_deadline<M: Machine>(
        &self,
        local: &Local,
        machine: &M,
        context: Context,
        deadline: u64,
    ) {
        if let Some(word) = local.timed.get(context.index() / 64) {
            word.set(word.get() | 1 << (context.index() % 64));
        }
        if deadline < local.next_deadline.get() {
            local.next_deadline.set(deadline);
            self.arm(local, machine);
        }
    }

    fn arm<M: Machine>(&self, local: &Local, machine: &M) {
        let slice = if local.slice_end.get() == 0 { NEVER } else { local.slice_end.get() };
        let watch = local.seen_at.get().saturating_add(WATCH_MS * machine.facts().tsc_khz);
        machine.set_timer(local.next_deadline.get().min(slice).min(watch));
    }

    /// The timer interrupt: wakes what is due and sets the timer anew. True: the service in user mode has
    /// overrun its budget, or was condemned, and must not go on.
    pub fn tick<M: Machine>(&self, local: &Local, machine: &M) -> bool {
        let now = machine.now();
        let mut next = NEVER;
        if local.next_deadline.get() <= now {
            for index in 0..WORDS {
                let Some(word) = local.timed.get(index) else { continue };
                let mut bits = word.get();
                while bits != 0 {
                    let bit = bits.trailing_zeros();
                    bits &= bits - 1;
                    match Context::from_number(index as u16 * 64 + bit as u16)
                        .map_or(0, |context| self.due(local, machine, context, now))
                    {
                        0 => word.set(word.get() & !(1 << bit)),
                        later => next = next.min(later),
                    }
                }
            }
            local.next_deadline.set(next);
        }
        let overrun = self.watch(local, machine, now);
        self.arm(local, machine);
        overrun
    }

    /// Wakes a context whose deadline has come. Returns the deadline that it still has, or 0.
    fn due<M: Machine>(&self, local: &Local, machine: &M, context: Context, now: u64) -> u64 {
        let state = self.context(context);
        match context.kind() {
            Kind::Doorbell(slot) => {
                let at = self.service(slot).timer.load(Ordering::SeqCst);
                if at == 0 || at > now {
                    return at;
                }
                self.service(slot).timer.store(0, Ordering::SeqCst);
                self.ring(local, machine, slot, doorbell::TIMER);
            }
            Kind::Vcpu(..) => {
                let at = state.deadline.load(Ordering::Relaxed);
                if at == 0 || at > now {
                    return at;
                }
                state.deadline.store(0, Ordering::Relaxed);
                state.pending.fetch_or(pending::TIMER, Ordering::SeqCst);
                if state.change_phase(Phase::Parked, Phase::Ready) {
                    self.make_ready(local, context);
                }
            }
        }
        0
    }

    fn watch<M: Machine>(&self, local: &Local, machine: &M, now: u64) -> bool {
        let slot = local.service.get();
        if slot == NO_SERVICE || local.deliveries.get() != local.seen.get() {
            local.seen.set(local.deliveries.get());
            local.seen_at.set(now);
            local.running_for.set(0);
            return false;
        }
        let service = self.service(usize::from(slot));
        let budget = u64::from(service.budget_ms.load(Ordering::Relaxed)) * machine.facts().tsc_khz;
        let began = local.seen_at.get();
        // The timer is armed from `seen_at`; it has to move on although the service did not.
        local.seen_at.set(now);
        local.running_for.set(local.running_for.get() + now.saturating_sub(began));
        service.is_doomed() || local.running_for.get() > budget
    }

    /// Ends the service in user mode because [`tick`](Self::tick) said so.
    pub fn overrun<M: Machine>(&self, local: &Local, machine: &M, frame: &mut UserFrame) -> Next {
        let slot = usize::from(local.service.get());
        if self.service(slot).is_doomed() {
            return self.die(local, machine, frame, slot);
        }
        self.blame(local, machine, slot, FaultKind::Overrun, frame)
    }

    /// Makes a vCPU exit to its vmm, wherever it is.
    pub fn kick<M: Machine>(&self, local: &Local, machine: &M, context: Context, why: u32) {
        let state = self.context(context);
        state.pending.fetch_or(why, Ordering::SeqCst);
        if state.change_phase(Phase::Parked, Phase::Ready) {
            self.wake(local, machine, context);
        } else if state.in_guest() {
            machine.interrupt_cpu(caisson_proto::addr::CpuId(state.home.load(Ordering::SeqCst)));
        }
    }

    /// Notes that a vCPU enters its guest here: the CPU may now cache lines of the VM, and holds translations.
    #[inline]
    pub fn entering(&self, local: &Local, context: Context) {
        if let Kind::Vcpu(vm, _) = context.kind()
            && let Some(shared) = self.cpus.get(usize::from(local.cpu.0))
            && shared.ran.load(Ordering::Relaxed) >> (vm % 64) & 1 == 0
        {
            shared.ran.fetch_or(1 << (vm % 64), Ordering::SeqCst);
        }
        self.context(context).world.fetch_add(1, Ordering::SeqCst);
    }

    /// Notes that it left.
    #[inline]
    pub fn left(&self, context: Context) {
        self.context(context).world.fetch_add(1, Ordering::SeqCst);
    }
}
