//! How services end, and what that means for whoever waits for them.
//!
//! A service ends only while its turn is held: by the chain that runs in it, or by the supervisor's own when it is
//! idle. So nothing else runs in it while its id moves on. A service in the middle of a chain is condemned and
//! ends when the chain comes back to it.

use core::sync::atomic::Ordering;

use caisson_proto::abi::{MAX_VCPUS, Status};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{FaultKind, ServiceState, VmState};

use crate::context::{Context, Phase, pending};
use crate::cpu::UserFrame;
use crate::event::Event;
use crate::here::Here;
use crate::ipc::Next;
use crate::machine::Machine;
use crate::service::Epitaph;

impl<M: Machine> Here<'_, M> {
    /// The service in user mode raised an exception.
    #[allow(clippy::too_many_arguments)] // one fact each
    pub fn exception(&self, frame: &mut UserFrame, vector: u8, error: u64, rip: u64, rsp: u64, address: u64) -> Next {
        let slot = usize::from(self.local.service.get());
        let epitaph = Epitaph {
            state: ServiceState::Faulted,
            fault: FaultKind::Exception,
            code: u64::from(vector) << 32 | error & 0xffff_ffff,
            rip,
            address,
            rsp,
            client: u64::from(self.service(slot).caller().sender()),
        };
        self.end_service(frame, slot, epitaph)
    }

    /// The service broke the rules.
    #[cold]
    pub(crate) fn blame(&self, slot: usize, fault: FaultKind, frame: &mut UserFrame) -> Next {
        let service = self.service(slot);
        let code = match fault {
            FaultKind::Overrun => u64::from(service.budget_ms.load(Ordering::Relaxed)),
            _ => frame.words[0],
        };
        let epitaph = Epitaph {
            state: ServiceState::Faulted,
            fault,
            code,
            rip: frame.rip,
            address: frame.rax,
            rsp: frame.rsp,
            client: u64::from(service.caller().sender()),
        };
        self.end_service(frame, slot, epitaph)
    }

    /// The service ends itself.
    #[cold]
    pub(crate) fn exit_service(&self, slot: usize, frame: &mut UserFrame) -> Next {
        let [code, rip, address, rsp, client, ..] = frame.words;
        let epitaph = Epitaph { state: ServiceState::Exited, fault: FaultKind::None, code, rip, address, rsp, client };
        self.end_service(frame, slot, epitaph)
    }

    /// A condemned service ends, now that the chain is back at it.
    #[cold]
    pub(crate) fn die(&self, frame: &mut UserFrame, slot: usize) -> Next {
        self.end_service(frame, slot, Epitaph::plain(ServiceState::Killed))
    }

    /// Ends a service whose turn the present context has, and answers its caller in its place.
    fn end_service(&self, frame: &mut UserFrame, slot: usize, epitaph: Epitaph) -> Next {
        let service = self.service(slot);
        let caller = service.caller();
        self.bury(slot, epitaph);
        let Some(context) = self.local.context.get() else { return Next::Pick };
        self.answer(frame, context, caller, Status::Died, &[0; 8])
    }

    /// Ends a service whose turn this CPU has; passes the turn on.
    fn bury(&self, slot: usize, epitaph: Epitaph) {
        let service = self.service(slot);
        let id = service.id();
        self.settle(slot, service);
        service.bury(epitaph);
        self.machine.log(match epitaph.state {
            ServiceState::Faulted => Event::Faulted {
                service: id,
                kind: epitaph.fault,
                code: epitaph.code,
                rip: epitaph.rip,
                address: epitaph.address,
            },
            ServiceState::Exited => Event::Exited(id, epitaph.code),
            _ => Event::Killed(id),
        });
        self.orphan(id);
        self.pass_turn(service);
        self.ring_supervisor();
    }

    /// Stops every VM that a dead service handled. Under the table lock, so that none is released meanwhile and its
    /// slot another's.
    fn orphan(&self, handler: ServiceId) {
        let _stay = self.tables();
        for (slot, vm) in self.vms.iter().enumerate() {
            if vm.state() == Some(VmState::Alive) && vm.handler() == handler {
                vm.dying();
                self.stop_vcpus(slot);
            }
        }
    }

    /// Asks every vCPU of a VM to stop.
    pub(crate) fn stop_vcpus(&self, vm: usize) {
        for index in 0..MAX_VCPUS {
            let context = Context::vcpu(vm, index);
            self.kick(context, pending::STOP);
        }
    }

    /// Whether no vCPU of a VM runs or will run.
    pub(crate) fn vcpus_idle(&self, vm: usize) -> bool {
        (0..MAX_VCPUS).all(|index| self.context(Context::vcpu(vm, index)).phase() == Phase::Idle)
    }

    /// Kills a service: now if it is idle, else when the chain that it is in comes back to it.
    pub(crate) fn kill(&self, slot: usize) {
        let service = self.service(slot);
        if service.doom() {
            self.kill_idle(slot);
        }
    }

    /// Ends a condemned service unless somebody has its turn. Who has it does this when leaving: of the two, one
    /// sees the other.
    pub(crate) fn kill_idle(&self, slot: usize) {
        let service = self.service(slot);
        if service.turn.try_enter() {
            if service.is_alive() && service.is_doomed() {
                self.reap(slot);
            } else {
                self.pass_turn(service);
            }
        }
    }

    /// Ends a condemned service that runs for nobody, and whose turn this CPU has.
    pub(crate) fn reap(&self, slot: usize) {
        self.bury(slot, Epitaph::plain(ServiceState::Killed));
    }

    /// Starts a dead service from its pristine image; its activation has the turn until its first message.
    ///
    /// # Errors
    /// [`Status::State`] if it runs or still handles a VM, [`Status::Busy`] while others are being told that it is
    /// dead.
    pub fn restart(&self, slot: usize) -> Result<ServiceId, Status> {
        let service = self.service(slot);
        let handles = |vm: &crate::vms::Vm| vm.state().is_some() && vm.handler().index() == slot;
        if service.is_alive() || self.vms.iter().any(handles) {
            return Err(Status::State);
        }
        if !service.turn.try_enter() {
            return Err(Status::Busy);
        }
        let entry = self.machine.reset_service(slot);
        service.revive(entry, caisson_proto::layout::STACK_TOP);
        self.machine.log(Event::Started(service.id()));
        self.ring(slot, 0);
        Ok(service.id())
    }
}
