//! Calls, replies and doorbells: how control moves between services.
//!
//! A call is a switch on the caller's CPU and time. What a call leaves behind in the caller is its stack pointer
//! and return address; who called is noted in the callee. So a chain of calls is a list through the services, and
//! its root is a context.

use crate::prelude::*;
use caisson_proto::layout;

/// What the CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the service that the frame describes.
    User,
    /// Ask [`Here::pick`].
    Pick,
}

impl<M: Machine> Here<'_, M> {
    /// A system call of the service that is in user mode. Calls between services and the replies to them come first
    /// and have ways of their own, on which nothing else is looked at and nothing is kept across a call.
    #[inline(always)]
    pub fn syscall(self, frame: &mut UserFrame) -> Next {
        let slot = usize::from(self.local.service.get());
        let service = self.service(slot);
        if frame.rax as u8 == Syscall::Call as u8 {
            self.call(frame, slot, service)
        } else if frame.rax as u8 == Syscall::Reply as u8
            && let Some(caller) = Sender(service.caller.word() as u32).service()
        {
            self.reply_to_service(frame, slot, caller)
        } else {
            self.other_syscall(frame, slot)
        }
    }

    #[inline(never)]
    fn other_syscall(self, frame: &mut UserFrame, slot: usize) -> Next {
        let service = self.service(slot);
        match Syscall::from_word(frame.rax & 0xff) {
            Some(Syscall::Reply) => self.reply(frame, slot, service),
            Some(Syscall::Ring) => self.ring_from(frame, service),
            Some(Syscall::Null) => back(frame, Status::Ok),
            Some(Syscall::Exit) => self.exit_service(slot, frame),
            _ => self.blame(slot, FaultKind::Protocol, frame),
        }
    }

    #[inline(always)]
    fn call(self, frame: &mut UserFrame, slot: usize, service: &Service) -> Next {
        let target = (frame.rax >> 16 & 0xffff) as usize;
        if !allows(&service.may_call, target) {
            return self.call_elsewhere(frame, slot, target);
        }
        service.goes_on_at(frame.rip, frame.rsp);
        let id = ServiceId::from_bits((frame.rax >> 16) as u32);
        self.send(frame, id, Sender(service.id.word() as u32))
    }

    /// A call of the kernel, or one that isn't allowed.
    #[inline(never)]
    fn call_elsewhere(self, frame: &mut UserFrame, slot: usize, target: usize) -> Next {
        if target == usize::from(KERNEL_SLOT) {
            return self.kernel_call(frame, slot, self.service(slot));
        }
        let status = if target < self.service_count() { Status::Downhill } else { Status::Denied };
        self.refuse(self.service(slot), frame.rax, status, frame)
    }

    /// Delivers the call whose words and lease the frame has, at once or in its turn.
    #[inline(always)]
    pub(crate) fn send(self, frame: &mut UserFrame, to: ServiceId, caller: Sender) -> Next {
        let turn = &self.service(to.index()).turn;
        if turn.try_enter() || turn.enter(|| self.local.context.get().unwrap_or_default()) {
            self.deliver(frame, to, caller)
        } else {
            self.wait_turn(frame, to, caller)
        }
    }

    /// Puts a call on hold: its service is busy elsewhere. The CPU runs something else.
    #[cold]
    fn wait_turn(self, frame: &UserFrame, target: ServiceId, caller: Sender) -> Next {
        let Some(context) = self.local.context.take() else { return Next::Pick };
        *self.context(context).call.lock() = Stashed { target, caller, words: frame.words, lease: frame.rbx };
        self.context(context).phase.swap(Phase::Waiting);
        self.local.service.set(NO_SERVICE);
        Next::Pick
    }

    /// Hands the message in the frame to a service whose turn the context has.
    #[inline(always)]
    pub(crate) fn deliver(self, frame: &mut UserFrame, id: ServiceId, caller: Sender) -> Next {
        let target = self.service(id.index());
        if !target.id.is(id) || !target.life.is(Life::Alive) {
            return self.cant_deliver(frame, id, caller);
        }
        if frame.rbx != 0 {
            return self.deliver_with_lease(frame, id.index(), caller);
        }
        self.hand_over(frame, id.index(), caller)
    }

    #[inline(always)]
    fn hand_over(self, frame: &mut UserFrame, slot: usize, caller: Sender) -> Next {
        let service = self.service(slot);
        service.caller.set(caller);
        service.alone.store(0, Ordering::Relaxed);
        service.spent.store(0, Ordering::Relaxed);
        frame.rax = caller.to_word() << 32;
        self.go_on(frame, slot)
    }

    /// The receiver is dead, another generation or condemned.
    #[cold]
    fn cant_deliver(self, frame: &mut UserFrame, id: ServiceId, caller: Sender) -> Next {
        let target = self.service(id.index());
        if target.id.get() == id && target.is_doomed() {
            self.reap(id.index())
        } else {
            self.pass_turn(target)
        }
        frame.words = [target.id.get().bits().into(), 0, 0, 0, 0, 0, 0, 0];
        self.answer(frame, caller, Status::Dead)
    }

    /// Lets a service go on where it waits, with what else the frame has.
    #[inline(always)]
    fn go_on(self, frame: &mut UserFrame, slot: usize) -> Next {
        let service = self.service(slot);
        (frame.rip, frame.rsp) = (service.rip.load(Ordering::Relaxed), service.rsp.load(Ordering::Relaxed));
        self.local.service.set(slot as u16);
        self.machine.load_space(slot);
        Next::User
    }

    /// Lends what the frame says, and puts there what the receiver sees; or answers in the receiver's place.
    #[cold]
    fn deliver_with_lease(self, frame: &mut UserFrame, to: usize, caller: Sender) -> Next {
        let lend = |from: ServiceId| {
            let lease = Lease::from_word(frame.rbx).ok()??;
            // Only its own memory: image, stack and heap. What it shares may vanish while it is lent.
            let own = lease.page.0 + lease.pages <= layout::RINGS >> 12;
            own.then(|| self.machine.lend(from.index(), to, lease).ok())?
        };
        let Some(lent) = caller.service().and_then(lend) else {
            self.pass_turn(self.service(to));
            let from = caller.service().map(|from| self.service(from.index()));
            from.map(|from| self.refuse(from, frame.rbx, Status::BadLease, frame));
            frame.words = [0; 8];
            return self.answer(frame, caller, Status::BadLease);
        };
        frame.rbx = lent.to_word();
        self.service(to).borrows.set(lent.pages);
        self.hand_over(frame, to, caller)
    }

    /// Ends a service's turn and wakes whoever comes next.
    pub(crate) fn pass_turn(self, service: &Service) {
        if let Some(next) = service.turn.leave() {
            self.context(next).pending.fetch_or(pending::GRANTED, Ordering::SeqCst);
            self.wake(next);
        } else {
            self.succeed(service);
        }
    }

    /// A reply to a service's call if nothing needs care: no lease ends, and nobody is condemned.
    #[inline(always)]
    fn reply_to_service(self, frame: &mut UserFrame, slot: usize, caller: ServiceId) -> Next {
        let (service, status) = (self.service(slot), frame.rax >> 16 & 0xffff);
        if Status::from_word(status).is_none() || service.borrows.word() != 0 {
            return self.other_syscall(frame, slot);
        }
        if service.is_doomed() || self.service(caller.index()).is_doomed() {
            return self.other_syscall(frame, slot);
        }
        service.goes_on_at(frame.rip, frame.rsp);
        service.caller.set(Sender::NONE);
        (frame.rax, frame.rbx) = (status, 0);
        if !service.turn.leave_alone() {
            return self.turn_over_and_go_on(frame, slot, false, caller);
        }
        if service.is_doomed() {
            return self.turn_over_and_go_on(frame, slot, true, caller);
        }
        self.go_on(frame, caller.index())
    }

    #[inline(never)]
    fn turn_over_and_go_on(self, frame: &mut UserFrame, slot: usize, left: bool, caller: ServiceId) -> Next {
        self.turn_over(slot, left);
        self.go_on(frame, caller.index())
    }

    /// Passes the turn at a service on if it wasn't left, and ends the service if it was condemned.
    #[cold]
    fn turn_over(self, slot: usize, left: bool) {
        let service = self.service(slot);
        if !left {
            self.pass_turn(service);
        }
        if service.is_doomed() {
            self.kill_idle(slot);
        }
    }

    fn reply(self, frame: &mut UserFrame, slot: usize, service: &Service) -> Next {
        let Some(status) = Status::from_word(frame.rax >> 16 & 0xffff) else {
            return self.blame(slot, FaultKind::Protocol, frame);
        };
        let Some(context) = self.local.context.get() else { return Next::Pick };
        let caller = Sender(service.caller.word() as u32);
        if caller == Sender::VCPU && (status != Status::Ok || !self.apply(context, &frame.words)) {
            return self.blame(slot, FaultKind::Protocol, frame);
        }
        if service.is_doomed() {
            return self.die(frame, slot);
        }
        service.goes_on_at(frame.rip, frame.rsp);
        self.settle(slot, service);
        self.turn_over(slot, service.turn.leave_alone());
        self.answer(frame, caller, status)
    }

    /// Takes back what was lent to a service and forgets its caller.
    pub(crate) fn settle(self, slot: usize, service: &Service) {
        let pages = service.borrows.get();
        if pages != 0 {
            service.borrows.set(0);
            self.machine.take_back(slot, pages);
        }
        service.caller.set(Sender::NONE);
    }

    /// Gives the words in the frame to whoever waits for them.
    #[inline(always)]
    pub(crate) fn answer(self, frame: &mut UserFrame, caller: Sender, status: Status) -> Next {
        if let Some(id) = caller.service() {
            (frame.rax, frame.rbx) = (status as u64, 0);
            let next = self.go_on(frame, id.index());
            return if self.service(id.index()).is_doomed() { self.die(frame, id.index()) } else { next };
        }
        self.local.service.set(NO_SERVICE);
        let Some(context) = self.local.context.get() else { return Next::Pick };
        match context.kind() {
            Kind::Vcpu(..) => {
                if status != Status::Ok {
                    // Its vmm died: there is nobody to ask what becomes of it.
                    self.context(context).phase.swap(Phase::Idle);
                }
                self.answered(context);
            }
            // Bells that rang meanwhile queue the activation again.
            Kind::Doorbell(slot) => {
                self.local.context.set(None);
                self.context(context).phase.swap(Phase::Idle);
                if self.service(slot).bells.done() {
                    self.ring(slot, 0);
                }
                self.succeed(self.service(slot));
            }
        }
        Next::Pick
    }

    /// Applies a vmm's reply to its vCPU. False: the reply can't be.
    #[inline(always)]
    fn apply(self, context: Context, words: &Words) -> bool {
        let (Ok(resume), Kind::Vcpu(vm, _)) = (Resume::from_words(words), context.kind()) else { return false };
        let Some(root) = self.vms.get(vm).and_then(|vm| vm.root(resume.view)) else { return false };
        if self.machine.vcpu_resume(context, &resume, root).is_err() {
            return false;
        }
        let state = self.context(context);
        state.deadline.store(resume.deadline, Ordering::Relaxed);
        state.phase.swap(match resume.action {
            Action::Run => Phase::Running,
            Action::Park => Phase::Parked,
            Action::Stop => Phase::Idle,
        });
        true
    }

    fn ring_from(self, frame: &mut UserFrame, service: &Service) -> Next {
        let target = (frame.rax >> 16 & 0xffff) as usize;
        if !allows(&service.may_ring, target) {
            return self.refuse(service, frame.rax, Status::Denied, frame);
        }
        self.ring(target, frame.words[0]);
        back(frame, Status::Ok)
    }

    /// Refuses something, and names who asked for it in the log: each time, then ever more rarely.
    #[cold]
    pub(crate) fn refuse(self, service: &Service, what: u64, status: Status, frame: &mut UserFrame) -> Next {
        if (service.refused.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
            self.machine.log(Event::Refused(service.id.get(), what, status));
        }
        back(frame, status)
    }
}

/// Whether a service is in a set of services.
fn allows(set: &AtomicU64, slot: usize) -> bool {
    slot < 64 && set.load(Ordering::Relaxed) >> slot & 1 == 1
}

/// The service in user mode goes on with this status.
pub(crate) fn back(frame: &mut UserFrame, status: Status) -> Next {
    frame.rax = status as u64;
    Next::User
}
