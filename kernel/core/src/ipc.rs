//! Calls, replies and doorbells: how control moves between services.
//!
//! A call is a switch on the caller's CPU and time. What a call leaves behind in the caller is its stack pointer
//! and return address; who called is noted in the callee. So a chain of calls is a list through the services, and
//! its root is a context.

use core::sync::atomic::Ordering;

use crate::{
    context::Context, context::Kind, context::Phase, context::Stashed, cpu::NO_SERVICE, cpu::UserFrame, here::Here,
    machine::Machine, service::Caller, service::Service,
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
            Some(Syscall::Null) => {
                frame.rax = Status::Ok as u64;
                Next::User
            }
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
        if target >= 64 || service.may_call.load(Ordering::Relaxed) >> target & 1 == 0 {
            let known = target < self.service_count();
            frame.rax = if known { Status::Downhill } else { Status::Denied } as u64;
            return Next::User;
        }
        let id = ServiceId::new(target as u16, (frame.rax >> 32) as u16);
        if self.service(target).id.get() != id {
            frame.rax = Status::Dead as u64;
            frame.words = id_words(self.service(target).id.get());
            return Next::User;
        }
        let Some(context) = self.local.context.get() else { return Next::Pick };
        service.rip.store(frame.rip, Ordering::Relaxed);
        service.rsp.store(frame.rsp, Ordering::Relaxed);
        let caller = Caller::Service(service.id.get());
        let call = Stashed { target: id, caller, words: frame.words, lease: frame.rbx };
        self.send(frame, context, &call)
    }

    /// Delivers a call at once or in its turn.
    #[inline]
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
    #[inline]
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
            let now = target.id.get();
            return self.answer(frame, context, caller, Status::Dead, &id_words(now));
        }
        frame.rbx = 0;
        if call.lease != 0 {
            match self.lend(caller, id.index(), call.lease) {
                Ok(lease) => frame.rbx = lease,
                Err(status) => {
                    self.pass_turn(target);
                    return self.answer(frame, context, caller, status, &[0; 8]);
                }
            }
        }
        target.caller.set(caller);
        frame.words = call.words;
        frame.rax = caller.to_word() << 32;
        frame.rip = target.rip.load(Ordering::Relaxed);
        frame.rsp = target.rsp.load(Ordering::Relaxed);
        self.local.service.set(id.index() as u16);
        self.local.request.begin();
        if !matches!(caller, Caller::Service(_)) {
            self.local.root.begin();
        }
        self.machine.load_space(id.index());
        Next::User
    }

    #[cold]
    fn lend(&self, caller: Caller, to: usize, word: u64) -> Result<u64, Status> {
        let Caller::Service(from) = caller else { return Err(Status::BadLease) };
        let lease = Lease::from_word(word).map_err(|_| Status::BadLease)?.ok_or(Status::BadLease)?;
        // Only its own memory: image, stack and heap. What it shares may vanish while it is lent.
        if lease.page.0 + lease.pages > layout::RINGS >> 12 {
            return Err(Status::BadLease);
        }
        let lent = self.machine.lend(from.index(), to, lease)?;
        self.service(to).borrows.set(true);
        Ok(lent.to_word())
    }

    /// Ends a service's turn and wakes whoever comes next.
    #[inline]
    pub(crate) fn pass_turn(&self, service: &Service) {
        if let Some(next) = service.turn.leave() {
            self.context(next).pending.fetch_or(crate::context::pending::GRANTED, Ordering::SeqCst);
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
        if caller == Caller::Vcpu && (status != Status::Ok || !self.apply(context, &frame.words)) {
            return self.blame(slot, FaultKind::Protocol, frame);
        }
        if service.doomed.get() {
            return self.die(frame, slot);
        }
        service.rip.store(frame.rip, Ordering::Relaxed);
        service.rsp.store(frame.rsp, Ordering::Relaxed);
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
        service.caller.set(Caller::None);
    }

    /// Gives an answer to whoever waits for it.
    #[inline]
    pub(crate) fn answer(
        &self, frame: &mut UserFrame, context: Context, caller: Caller, status: Status, words: &Words,
    ) -> Next {
        match caller {
            Caller::Service(id) => {
                let service = self.service(id.index());
                self.local.service.set(id.index() as u16);
                frame.rax = status as u64;
                frame.words = *words;
                frame.rbx = 0;
                frame.rip = service.rip.load(Ordering::Relaxed);
                frame.rsp = service.rsp.load(Ordering::Relaxed);
                if service.doomed.get() {
                    return self.die(frame, id.index());
                }
                self.machine.load_space(id.index());
                Next::User
            }
            Caller::Vcpu => {
                self.local.service.set(NO_SERVICE);
                if status != Status::Ok {
                    // Its vmm died: there is nobody to ask what becomes of it.
                    self.context(context).set_phase(Phase::Idle);
                }
                self.answered(context);
                Next::Pick
            }
            Caller::Doorbell | Caller::Start | Caller::None => {
                self.local.service.set(NO_SERVICE);
                self.activation_done(context);
                Next::Pick
            }
        }
    }

    /// A doorbell activation has run. Bells that rang meanwhile queue it again.
    fn activation_done(&self, context: Context) {
        self.local.context.set(None);
        if let Kind::Doorbell(slot) = context.kind() {
            self.context(context).set_phase(Phase::Idle);
            if self.service(slot).bells.done() {
                self.ring(slot, 0);
            }
        }
    }

    /// Applies a vmm's reply to its vCPU. False: the reply can't be.
    #[inline]
    fn apply(&self, context: Context, words: &Words) -> bool {
        let Ok(resume) = Resume::from_words(words) else { return false };
        let Kind::Vcpu(vm, _) = context.kind() else { return false };
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
        let allowed = target < 64 && service.may_ring.load(Ordering::Relaxed) >> target & 1 == 1;
        frame.rax = if allowed {
            self.ring(target, frame.words[0]);
            Status::Ok
        } else {
            Status::Denied
        } as u64;
        Next::User
    }
}

/// The words that tell a sender the present id of a slot.
fn id_words(id: ServiceId) -> Words {
    [u64::from(id.bits()), 0, 0, 0, 0, 0, 0, 0]
}
