//! Operations on services, and what the machine and its time tell them.

use super::{Answer, Call, ok};
use crate::prelude::*;
use caisson_proto::kernel::Machine as Facts;

impl<M: Machine> Call<'_, M> {
    fn in_slot(&self, slot: usize) -> Result<&Service, Status> {
        if slot < self.service_count() { Ok(self.service(slot)) } else { Err(Status::NotFound) }
    }

    fn target(&self, id: ServiceId) -> Result<&Service, Status> {
        let service = self.in_slot(id.index())?;
        if service.id.get() == id { Ok(service) } else { Err(Status::Dead) }
    }

    pub(super) fn service_status(&self, request: &ServiceStatus) -> Answer {
        let service = self.in_slot(request.slot.into())?;
        ok(ServiceReport { id: service.id.get(), ..*service.epitaph.lock() })
    }

    pub(super) fn service_restart(&self, request: &ServiceRestart) -> Answer {
        self.target(request.service)?;
        ok(Restarted { id: self.restart(request.service.index())? })
    }

    pub(super) fn service_kill(&self, request: &ServiceKill) -> Answer {
        ensure(self.target(request.service)?.is_alive() && request.service.index() != self.slot, Status::State)?;
        self.kill(request.service.index());
        ok(Done {})
    }

    pub(super) fn power_off(&self, request: &PowerOff) -> Answer {
        self.machine.power_off(request.status);
        ok(Done {})
    }

    pub(super) fn machine_info(&self, _: &MachineInfo) -> Answer {
        let (cpus, services) = (self.cpu_count() as u16, self.service_count() as u16);
        let (tsc_khz, features, frames) =
            (self.machine.tsc_khz(), self.machine.features(), self.tables().frames.size());
        let (asids, sev_asids) = self.machine.asids();
        ok(Facts { cpus, tsc_khz, features, frames, asids, services, sev_asids })
    }

    pub(super) fn timer_set(&self, request: &TimerSet) -> Answer {
        let bell = Context::doorbell(self.slot);
        self.context(bell).deadline.store(request.at.0, Ordering::SeqCst);
        self.await_deadline(bell, request.at.0);
        ok(Done {})
    }
}
