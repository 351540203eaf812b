//! Which context runs on this CPU, and until when.
//!
//! Mechanism only: a context stays on its CPU. Doorbell activations come before vCPUs, the highest rank first;
//! vCPUs take turns in slices. A service is never preempted by another context: what bounds it is its budget.

use crate::prelude::*;

/// A vCPU's slice where others wait, in milliseconds.
pub const SLICE_MS: u64 = 5;
/// How often the watchdog looks at a CPU that doesn't idle, in milliseconds.
pub const WATCH_MS: u64 = 50;
/// How many times its budget a service may take with all that it calls for one request.
pub const CHAIN_BUDGETS: u64 = 4;
/// Doorbell activations in a row while a vCPU is ready.
pub const BELLS_IN_A_ROW: u8 = 16;

/// What [`Here::pick`] chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Enter the service that the frame describes.
    User,
    /// Enter this vCPU's guest.
    Guest(Context),
    /// Nothing to do: wait for an interrupt.
    Idle,
}

impl<M: Machine> Here<'_, M> {
    /// Chooses what this CPU does next.
    pub fn pick(self, frame: &mut UserFrame) -> Choice {
        loop {
            self.shared().woken.take(|context| self.make_ready(context));
            if let Some(context) = self.local.context.get() {
                if !self.must_yield() {
                    let Some(choice) = self.before_entry(frame, context) else { continue };
                    return choice;
                }
                self.context(context).phase.swap(Phase::Ready);
                self.make_ready(context);
                self.local.context.set(None);
            }
            let Some(context) = self.next_ready() else { return Choice::Idle };
            if self.begin(frame, context) == Next::User {
                return Choice::User;
            }
        }
    }

    /// Whether the running vCPU makes room: at once for who has a service's turn and for doorbells, for another vCPU
    /// after its slice.
    fn must_yield(self) -> bool {
        if self.bell().is_some() || !self.local.granted.is_empty() {
            return true;
        }
        let (rivals, end) = (!self.local.ready.is_empty(), self.local.slice_end.get());
        if !rivals {
            self.local.slice_end.set(0);
        } else if end == 0 {
            self.local.slice_end.set(self.machine.now() + SLICE_MS * self.machine.tsc_khz());
            self.arm();
        }
        rivals && end != 0 && self.machine.now() >= end
    }

    /// Takes the next context out of the ready sets: who has a service's turn, else the highest doorbell, else the
    /// next vCPU round the circle.
    fn next_ready(self) -> Option<Context> {
        if let Some(context) = self.local.granted.iter().next() {
            self.local.granted.remove(context);
            return Some(context);
        }
        let ready = &self.local.ready;
        let vcpu = || ready.vcpu(usize::from(self.local.last.get()) + 1);
        let context = self.bell().or_else(vcpu).or_else(|| ready.bell())?;
        ready.remove(context);
        Some(context)
    }

    /// The highest doorbell, unless it's a vCPU's time.
    fn bell(self) -> Option<Context> {
        self.local.ready.bell().filter(|_| self.local.bells.get() < BELLS_IN_A_ROW)
    }

    /// Makes a context the running one.
    fn begin(self, frame: &mut UserFrame, context: Context) -> Next {
        let state = self.context(context);
        if state.home.load(Ordering::SeqCst) != self.local.cpu.0 {
            // The note is of a vCPU that died; another has its number now, and its own CPU runs it.
            return Next::Pick;
        }
        if state.phase.get() == Phase::Waiting {
            if state.pending.fetch_and(!pending::GRANTED, Ordering::SeqCst) & pending::GRANTED == 0 {
                return Next::Pick;
            }
            state.phase.swap(Phase::Running);
            self.local.context.set(Some(context));
            let Stashed { target, caller, words, lease } = *state.call.lock();
            (frame.words, frame.rbx) = (words, lease);
            return self.deliver(frame, target, caller);
        }
        match context.kind() {
            Kind::Doorbell(slot) => self.activate(frame, slot, context),
            Kind::Vcpu(..) => {
                if state.phase.change(Phase::Ready, Phase::Running) {
                    self.local.context.set(Some(context));
                    self.local.last.set(context.number());
                    self.local.slice_end.set(0);
                }
                Next::Pick
            }
        }
    }

    /// Hands a service its doorbells, or its first message.
    fn activate(self, frame: &mut UserFrame, slot: usize, context: Context) -> Next {
        let service = self.service(slot);
        self.local.bells.set(self.local.bells.get().saturating_add(1));
        self.context(context).phase.swap(Phase::Running);
        self.local.context.set(Some(context));
        // In this order: the first message is not for a service that isn't alive yet.
        let alive = service.is_alive();
        (frame.words, frame.rbx) = ([0; 8], 0);
        if alive && service.bells.take_fresh() {
            return self.deliver(frame, service.id.get(), Sender::START);
        }
        frame.words[0] = service.bells.take();
        if alive && frame.words[0] != 0 {
            return self.send(frame, service.id.get(), Sender::DOORBELL);
        }
        self.answer(frame, Sender::NONE, Status::Ok)
    }

    /// The last look before a guest is entered. `None`: look again.
    fn before_entry(self, frame: &mut UserFrame, context: Context) -> Option<Choice> {
        let state = self.context(context);
        self.local.bells.set(0);
        if state.pending.load(Ordering::SeqCst) == 0 {
            return Some(Choice::Guest(context));
        }
        let seen = state.pending.swap(0, Ordering::SeqCst);
        if seen & pending::STOP != 0 {
            state.phase.swap(Phase::Idle);
            self.local.context.set(None);
            return None;
        }
        let code = if seen & pending::KICK != 0 { code::KICK } else { code::TIMER };
        // The vmm is told of something that isn't the guest's doing.
        let exit = self.machine.vcpu_moment(context, code);
        (self.vm_exit(frame, context, &exit) == Next::User).then_some(Choice::User)
    }

    /// A vCPU calls its vmm.
    #[inline(always)]
    pub fn vm_exit(self, frame: &mut UserFrame, context: Context, exit: &Exit) -> Next {
        let Kind::Vcpu(vm, _) = context.kind() else { return Next::Pick };
        let Some(target) = self.vms.get(vm).map(|vm| vm.handler.get()) else { return Next::Pick };
        (frame.words, frame.rbx) = (exit.to_words(), 0);
        self.send(frame, target, Sender::VCPU)
    }

    /// A vCPU's vmm has answered (or died): sees to its deadline, and to kicks that came meanwhile.
    pub(crate) fn answered(self, context: Context) {
        let state = self.context(context);
        self.await_deadline(context, state.deadline.load(Ordering::Relaxed));
        if state.phase.get() == Phase::Running {
            return;
        }
        if state.unpark() {
            self.make_ready(context);
        }
        self.local.context.set(None);
    }

    /// Makes this CPU's timer see a context's deadline; 0 for none.
    pub(crate) fn await_deadline(self, context: Context, deadline: u64) {
        if deadline == 0 {
            return;
        }
        self.local.timed.insert(context);
        if deadline < self.local.next_deadline.get() {
            self.local.next_deadline.set(deadline);
            self.arm();
        }
    }

    /// Sets the timer. A slice that is over has been noticed or will be when the call chain ends; a timer for it
    /// would interrupt for ever.
    fn arm(self) {
        let end = self.local.slice_end.get();
        let slice = if end > self.machine.now() { end } else { NEVER };
        let watch = self.local.seen_at.get().saturating_add(WATCH_MS * self.machine.tsc_khz());
        self.machine.set_timer(self.local.next_deadline.get().min(slice).min(watch));
    }

    /// The timer interrupt: wakes what is due and sets the timer anew. True: the service in user mode has
    /// overrun its budget, or was condemned, and must not go on.
    pub fn tick(self) -> bool {
        let now = self.machine.now();
        let mut next = NEVER;
        if self.local.next_deadline.get() <= now {
            for context in self.local.timed.iter() {
                let deadline = &self.context(context).deadline;
                let at = deadline.load(Ordering::SeqCst);
                if at > now {
                    next = next.min(at);
                    continue;
                }
                self.local.timed.remove(context);
                // Another CPU that sets it anew looks after it itself.
                if at == 0 || deadline.compare_exchange(at, 0, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                    continue;
                }
                match context.kind() {
                    Kind::Doorbell(slot) => self.ring(slot, doorbell::TIMER),
                    // The vCPU of that number may be another one by now, and at home elsewhere.
                    Kind::Vcpu(..) => self.kick(context, pending::TIMER),
                }
            }
            self.local.next_deadline.set(next);
        }
        let overrun = self.watch(now);
        self.arm();
        overrun
    }

    /// Whether the service in user mode must not go on. One that calls others again and again is never by itself for
    /// long: its time with all that it calls counts too, and condemns it. Of a chain, the last whose time is over.
    fn watch(self, now: u64) -> bool {
        // Time that the host took isn't the service's. The timer is armed from `seen_at`, which has to move on.
        let most = 2 * WATCH_MS * self.machine.tsc_khz();
        let passed = now.saturating_sub(self.local.seen_at.replace(now)).min(most);
        let slot = self.local.service.get();
        if slot == NO_SERVICE {
            return false;
        }
        let service = self.service(slot.into());
        let budget = |of: &Service| u64::from(of.budget_ms.load(Ordering::Relaxed)) * self.machine.tsc_khz();
        let alone = service.alone.fetch_add(passed, Ordering::Relaxed) + passed;
        let (mut at, mut guilty) = (Some(service), false);
        while let Some(of) = at {
            // Whoever waits for a condemned service isn't to blame for it.
            let spent = if guilty { 0 } else { of.spent.load(Ordering::Relaxed) + passed };
            of.spent.store(spent, Ordering::Relaxed);
            if spent > CHAIN_BUDGETS * budget(of) {
                guilty = true;
                if of.condemn() {
                    of.epitaph.lock().fault = FaultKind::Overrun;
                }
            }
            at = of.caller.get().service().map(|id| self.service(id.index()));
        }
        service.is_doomed() || alone > budget(service)
    }

    /// Ends the service in user mode because [`tick`](Self::tick) said so.
    pub fn overrun(self, frame: &mut UserFrame) -> Next {
        let slot = usize::from(self.local.service.get());
        if self.service(slot).is_doomed() {
            return self.die(frame, slot);
        }
        self.blame(slot, FaultKind::Overrun, frame)
    }

    /// Makes a vCPU exit to its vmm, wherever it is.
    pub fn kick(self, context: Context, why: u32) {
        let state = self.context(context);
        if state.kick(why) {
            self.wake(context);
        } else if state.in_guest() {
            self.machine.interrupt_cpu(CpuId(state.home.load(Ordering::SeqCst)));
        }
    }

    /// Notes that a vCPU enters its guest here: the CPU may now cache lines of the VM, and holds translations.
    /// False: something became pending since [`pick`](Self::pick) chose it; pick again.
    pub fn entering(self, context: Context) -> bool {
        let ran = &self.shared().ran;
        if let Kind::Vcpu(vm, _) = context.kind()
            && ran.load(Ordering::Relaxed) >> (vm % 64) & 1 == 0
        {
            ran.fetch_or(1 << (vm % 64), Ordering::SeqCst);
        }
        let stale = self.context(context).enter();
        if stale == Some(true) {
            self.machine.vcpu_flush(context);
        }
        stale.is_some()
    }
}
