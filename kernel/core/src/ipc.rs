//! Calls, replies and doorbells: how control moves between services.
//!
//! A call is a switch on the caller's CPU and time. What a call leaves behind in the caller is its stack pointer
//! and return address; who called is noted in the callee. So a chain of calls is a list through the services, and
//! its root is a context.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{
    context::Context, context::Kind, context::Phase, context::Stashed, context::pending, cpu::NO_SERVICE,
    cpu::UserFrame, event::Event, here::Here, machine::Machine, machine::ensure, service::Caller, service::Service,
};
use caisson_proto::layout;
use caisson_proto::prelude::*;

/// What the CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the service that the frame describes.
    User,
    /// Ask [`Here::pick`].
    Pick,
}

impl<M: Machine> Here<'_, M> {
    /// A system call of the service that is in user mode.
    #[inline]
    pub fn syscall(&self, frame: &mut UserFrame) -> Next {
        let slot = usize::from(self.local.service.get());
        let service = self.service(slot);
        match Syscall::from_word(frame.rax & 0xff) {
            Some(Syscall::Call) => self.call(frame, slot, service),
            Some(Syscall::Reply) => self.reply(frame, slot, service),
            Some(Syscall::Ring) => self.ring_from(frame, service),
            Some(Syscall::Null) => back(frame, Status::Ok),
            Some(Syscall::Exit) => self.exit_service(slot, frame),
            None => self.blame(slot, FaultKind::Protocol, frame),
        }
    }

    #[inline]
    fn call(&self, frame: &mut UserFrame, slot: usize, service: &Service) -> Next {
        let target = (frame.rax >> 16 & 0xffff) as usize;
        if target == usize::from(KERNEL_SLOT) {
            return self.kernel_call(frame, slot, service);
        }
        if !allows(&service.may_call, target) {
            let status = if target < self.service_count() { Status::Downhill } else { Status::Denied };
            return self.refuse(service, frame.rax, status, frame);
        }
        let id = ServiceId::new(target as u16, (frame.rax >> 32) as u16);
        let now = self.service(target).id.get();
        if now != id {
            frame.words = first_word(now.bits().into());
            return back(frame, Status::Dead);
        }
        let Some(context) = self.local.context.get() else { return Next::Pick };
        service.goes_on_at(frame.rip, frame.rsp);
        let call =
            Stashed { target: id, caller: Caller(service.id.get().bits()), words: frame.words, lease: frame.rbx };
        self.send(frame, context, &call)
    }

    /// Delivers a call at once or in its turn.
    #[inline(always)]
    pub(crate) fn send(&self, frame: &mut UserFrame, context: Context, call: &Stashed) -> Next {
        if self.service(call.target.index()).turn.enter(context) {
            self.deliver(frame, context, call)
        } else {
            self.wait_turn(context, call)
        }
    }

    /// Puts a call on hold: its service is busy elsewhere. The CPU runs something else.
    #[cold]
    pub(crate) fn wait_turn(&self, context: Context, call: &Stashed) -> Next {
        *self.context(context).call.lock() = *call;
        self.context(context).set_phase(Phase::Waiting);
        self.local.context.set(None);
        self.local.service.set(NO_SERVICE);
        Next::Pick
    }

    /// Hands a message to a service whose turn the context has.
    #[inline(always)]
    pub(crate) fn deliver(&self, frame: &mut UserFrame, context: Context, call: &Stashed) -> Next {
        let (id, caller) = (call.target, call.caller);
        let target = self.service(id.index());
        let gone = target.id.get() != id || !target.alive.get();
        if gone || target.doomed.get() {
            if gone {
                self.pass_turn(target)
            } else {
                self.reap(id.index())
            }
            let now = first_word(target.id.get().bits().into());
            return self.answer(frame, context, caller, Status::Dead, &now);
        }
        let lent = if call.lease == 0 { Ok(0) } else { self.lend(caller, id.index(), call.lease) };
        let rbx = match lent {
            Ok(lease) => lease,
            Err(status) => {
                self.pass_turn(target);
                caller.service().map(|from| self.refuse(self.service(from.index()), call.lease, status, frame));
                return self.answer(frame, context, caller, status, &[0; 8]);
            }
        };
        target.caller.set(caller);
        target.alone.store(0, Ordering::Relaxed);
        target.spent.store(0, Ordering::Relaxed);
        let registers = UserFrame { rax: caller.to_word() << 32, words: call.words, rbx, ..*frame };
        self.go_on(frame, id.index(), registers)
    }

    /// Lets a service go on where it waits, with these registers.
    #[inline(always)]
    fn go_on(&self, frame: &mut UserFrame, slot: usize, registers: UserFrame) -> Next {
        let service = self.service(slot);
        let (rip, rsp) = (service.rip.load(Ordering::Relaxed), service.rsp.load(Ordering::Relaxed));
        *frame = UserFrame { rip, rsp, ..registers };
        self.local.service.set(slot as u16);
        self.machine.load_space(slot);
        Next::User
    }

    #[cold]
    fn lend(&self, caller: Caller, to: usize, word: u64) -> Result<u64, Status> {
        let from = caller.service().ok_or(Status::BadLease)?;
        let lease = Lease::from_word(word).map_err(|_| Status::BadLease)?.ok_or(Status::BadLease)?;
        // Only its own memory: image, stack and heap. What it shares may vanish while it is lent.
        ensure(lease.page.0 + lease.pages <= layout::RINGS >> 12, Status::BadLease)?;
        let lent = self.machine.lend(from.index(), to, lease)?;
        self.service(to).borrows.set(true);
        Ok(lent.to_word())
    }

    /// Ends a service's turn and wakes whoever comes next.
    #[inline]
    pub(crate) fn pass_turn(&self, service: &Service) {
        if let Some(next) = service.turn.leave() {
            self.context(next).pending.fetch_or(pending::GRANTED, Ordering::SeqCst);
            self.wake(next);
        }
    }

    #[inline]
    fn reply(&self, frame: &mut UserFrame, slot: usize, service: &Service) -> Next {
        let Some(status) = Status::from_word(frame.rax >> 16 & 0xffff) else {
            return self.blame(slot, FaultKind::Protocol, frame);
        };
        let Some(context) = self.local.context.get() else { return Next::Pick };
        let caller = service.caller.get();
        if caller == Caller::VCPU && (status != Status::Ok || !self.apply(context, &frame.words)) {
            return self.blame(slot, FaultKind::Protocol, frame);
        }
        if service.doomed.get() {
            return self.die(frame, slot);
        }
        service.goes_on_at(frame.rip, frame.rsp);
        self.settle(slot, service);
        self.pass_turn(service);
        if service.doomed.get() {
            self.kill_idle(slot);
        }
        let words = frame.words;
        self.answer(frame, context, caller, status, &words)
    }

    /// Takes back what was lent to a service and forgets its caller.
    #[inline]
    pub(crate) fn settle(&self, slot: usize, service: &Service) {
        if service.borrows.get() {
            service.borrows.set(false);
            self.machine.take_back(slot);
        }
        service.caller.set(Caller::NONE);
    }

    /// Gives an answer to whoever waits for it.
    #[inline(always)]
    pub(crate) fn answer(
        &self, frame: &mut UserFrame, context: Context, caller: Caller, status: Status, words: &Words,
    ) -> Next {
        if let Some(id) = caller.service() {
            self.go_on(frame, id.index(), UserFrame { rax: status as u64, words: *words, rbx: 0, ..*frame });
            return if self.service(id.index()).doomed.get() { self.die(frame, id.index()) } else { Next::User };
        }
        self.local.service.set(NO_SERVICE);
        match context.kind() {
            Kind::Vcpu(..) => {
                if status != Status::Ok {
                    // Its vmm died: there is nobody to ask what becomes of it.
                    self.context(context).set_phase(Phase::Idle);
                }
                self.answered(context);
            }
            // Bells that rang meanwhile queue the activation again.
            Kind::Doorbell(slot) => {
                self.local.context.set(None);
                self.context(context).set_phase(Phase::Idle);
                if self.service(slot).bells.done() {
                    self.ring(slot, 0);
                }
            }
        }
        Next::Pick
    }

    /// Applies a vmm's reply to its vCPU. False: the reply can't be.
    #[inline(always)]
    fn apply(&self, context: Context, words: &Words) -> bool {
        let (Ok(resume), Kind::Vcpu(vm, _)) = (Resume::from_words(words), context.kind()) else { return false };
        let Some(root) = self.vms.get(vm).and_then(|vm| vm.root(resume.view)) else { return false };
        if self.machine.vcpu_resume(context, &resume, root).is_err() {
            return false;
        }
        let state = self.context(context);
        state.deadline.store(resume.deadline, Ordering::Relaxed);
        state.set_phase(match resume.action {
            Action::Run => Phase::Running,
            Action::Park => Phase::Parked,
            Action::Stop => Phase::Idle,
        });
        true
    }

    fn ring_from(&self, frame: &mut UserFrame, service: &Service) -> Next {
        let target = (frame.rax >> 16 & 0xffff) as usize;
        if !allows(&service.may_ring, target) {
            return self.refuse(service, frame.rax, Status::Denied, frame);
        }
        self.ring(target, frame.words[0]);
        back(frame, Status::Ok)
    }

    /// Refuses something, and names who asked for it in the log: each time, then ever more rarely.
    #[cold]
    pub(crate) fn refuse(&self, service: &Service, what: u64, status: Status, frame: &mut UserFrame) -> Next {
        if (service.refused.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
            self.machine.log(Event::Refused(service.id.get(), what, status));
        }
        back(frame, status)
    }
}

/// Whether a service is in a set of services.
#[inline]
fn allows(set: &AtomicU64, slot: usize) -> bool {
    slot < 64 && set.load(Ordering::Relaxed) >> slot & 1 == 1
}

/// The service in user mode goes on with this status.
#[inline]
pub(crate) fn back(frame: &mut UserFrame, status: Status) -> Next {
    frame.rax = status as u64;
    Next::User
}

/// A message of one word.
pub(crate) const fn first_word(word: u64) -> Words {
    [word, 0, 0, 0, 0, 0, 0, 0]
}
