//! How services end, and what that means for whoever waits for them.
//!
//! A service ends only while its turn is held: by the chain that runs in it, or by the supervisor's own when it is
//! idle. So nothing else runs in it while its id moves on. A service in the middle of a chain is condemned and
//! ends when the chain comes back to it.

use caisson_proto::kernel::verdict;

use crate::prelude::*;

/// Lives of a supervisor after which the machine isn't to be helped.
pub const SUPERVISORS: u16 = 8;

impl<M: Machine> Here<'_, M> {
    /// The service in user mode raised an exception. The frame says where: rip and rsp, and in rax the address of a page
    /// fault.
    pub fn exception(self, frame: &mut UserFrame, vector: u8, error: u64) -> Next {
        frame.words[0] = u64::from(vector) << 32 | error & 0xffff_ffff;
        self.blame(self.local.service.get().into(), FaultKind::Exception, frame)
    }

    /// The service in user mode broke the rules, or raised an exception.
    #[cold]
    pub(crate) fn blame(self, slot: usize, fault: FaultKind, frame: &mut UserFrame) -> Next {
        let service = self.service(slot);
        let code = match fault {
            FaultKind::Overrun => u64::from(service.budget_ms.load(Ordering::Relaxed)),
            _ => frame.words[0],
        };
        let UserFrame { rip, rax: address, rsp, .. } = *frame;
        let (client, plain) = (service.caller.get().to_word(), plain(service.id.get(), ServiceState::Faulted));
        self.end_service(frame, ServiceReport { fault, code, rip, address, rsp, client, ..plain })
    }

    /// The service ends itself.
    #[cold]
    pub(crate) fn exit_service(self, slot: usize, frame: &mut UserFrame) -> Next {
        let [code, rip, address, rsp, client, ..] = frame.words;
        let plain = plain(self.service(slot).id.get(), ServiceState::Exited);
        self.end_service(frame, ServiceReport { code, rip, address, rsp, client, ..plain })
    }

    /// A condemned service ends, now that the chain is back at it.
    #[cold]
    pub(crate) fn die(self, frame: &mut UserFrame, slot: usize) -> Next {
        let service = self.service(slot);
        if service.epitaph.lock().fault == FaultKind::Overrun {
            return self.blame(slot, FaultKind::Overrun, frame);
        }
        self.end_service(frame, plain(service.id.get(), ServiceState::Killed))
    }

    /// Ends a service whose turn the present context has, and answers its caller in its place.
    fn end_service(self, frame: &mut UserFrame, report: ServiceReport) -> Next {
        let caller = self.service(report.id.index()).caller.get();
        self.bury(report);
        frame.words = [0; 8];
        self.answer(frame, caller, Status::Died)
    }

    /// Ends a service whose turn this CPU has; passes the turn on.
    fn bury(self, report: ServiceReport) {
        let ServiceReport { id, state, fault: kind, code, rip, address, .. } = report;
        let service = self.service(id.index());
        self.settle(id.index(), service);
        self.orphan(service, report);
        self.machine.log(match state {
            ServiceState::Faulted => Event::Faulted { service: id, kind, code, rip, address },
            ServiceState::Exited => Event::Exited(id, code),
            _ => Event::Killed(id),
        });
        self.ring_all(Caps::SUPERVISE, doorbell::SERVICE_DIED);
        self.pass_turn(service);
    }

    /// Starts a supervisor again that died, as nobody else does: tried by whoever leaves its queue last, and at the end of
    /// its last life's activation.
    pub(crate) fn succeed(self, service: &Service) {
        if service.is_alive() || !service.caps.get().contains(Caps::SUPERVISE) {
            return;
        }
        let id = service.id.get();
        match id.generation() > SUPERVISORS {
            true => self.machine.power_off(verdict::FAULTED),
            false => drop(self.restart(id.index())),
        }
    }

    /// Stops every VM of a service that dies with this; who sees that it is dead sees them dying. Under the table lock,
    /// so that none is released meanwhile and its slot another's, and none made for it.
    fn orphan(self, service: &Service, report: ServiceReport) {
        let _stay = self.tables();
        for (slot, vm) in self.vms.iter().enumerate() {
            if vm.state() == Some(VmState::Alive) && vm.handler.get() == report.id {
                vm.dying();
                self.stop_vcpus(slot);
            }
        }
        service.bury(report);
    }

    /// Asks every vCPU of a VM to stop.
    pub(crate) fn stop_vcpus(self, vm: usize) {
        (0..MAX_VCPUS).for_each(|index| self.kick(Context::vcpu(vm, index), pending::STOP));
    }

    /// Whether no vCPU of a VM runs or will run.
    pub(crate) fn vcpus_idle(self, vm: usize) -> bool {
        (0..MAX_VCPUS).all(|index| self.context(Context::vcpu(vm, index)).phase.get() == Phase::Idle)
    }

    /// Kills a service: now if it is idle, else when the chain that it is in comes back to it.
    pub(crate) fn kill(self, slot: usize) {
        let service = self.service(slot);
        if service.condemn() {
            self.kill_idle(slot);
        }
    }

    /// Ends a condemned service unless somebody has its turn. Who has it does this when leaving: of the two, one
    /// sees the other.
    pub(crate) fn kill_idle(self, slot: usize) {
        let service = self.service(slot);
        if service.turn.try_enter() {
            if service.is_doomed() {
                self.reap(slot);
            } else {
                self.pass_turn(service);
            }
        }
    }

    /// Ends a condemned service that runs for nobody, and whose turn this CPU has.
    pub(crate) fn reap(self, slot: usize) {
        self.bury(plain(self.service(slot).id.get(), ServiceState::Killed));
    }

    /// Starts a dead service from its pristine image; its activation has the turn until its first message.
    ///
    /// # Errors
    /// [`Status::State`] if it runs or still handles a VM, [`Status::Busy`] while others are being told that it is
    /// dead, or its bells are on their way.
    pub fn restart(self, slot: usize) -> Result<ServiceId, Status> {
        let service = self.service(slot);
        let handles = |vm: &crate::vms::Vm| vm.state().is_some() && vm.handler.get().index() == slot;
        // Two at once would start it twice.
        let mut tables = self.tables();
        ensure(!service.is_alive() && !self.vms.iter().any(handles), Status::State)?;
        // The activation brings the first message, so none may be on its way that was for the last life: it would wait
        // for the turn that is kept for itself.
        ensure(service.bells.queue(), Status::Busy)?;
        if !service.turn.try_enter() {
            let _ = service.bells.done();
            return Err(Status::Busy);
        }
        if let Some(mailbox) = self.machine.mailbox().filter(|_| service.caps.get().contains(Caps::SILICON)) {
            // A processor that begins anew has nothing, and nothing is initialised.
            (tables.snp, tables.lent) = (false, 0);
            mailbox.rmp.0.clear();
        }
        let entry = self.machine.reset_service(slot);
        self.context(Context::doorbell(slot)).deadline.store(0, Ordering::SeqCst);
        service.revive(entry, caisson_proto::layout::STACK_TOP);
        self.machine.log(Event::Started(service.id.get()));
        self.activate_here(slot);
        Ok(service.id.get())
    }
}
