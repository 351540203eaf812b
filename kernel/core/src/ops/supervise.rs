//! Operations on services.

use caisson_proto::abi::Status;
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{PowerOff, Restarted, ServiceKill, ServiceReport, ServiceRestart, ServiceStatus};
use caisson_proto::wire::Done;

use super::{Answer, Call, ok};
use crate::machine::Machine;
use crate::service::Service;

impl<M: Machine> Call<'_, M> {
    fn target(&self, id: ServiceId) -> Result<&Service, Status> {
        if id.index() >= self.here.service_count() {
            return Err(Status::NotFound);
        }
        let service = self.here.service(id.index());
        if service.id() == id { Ok(service) } else { Err(Status::Dead) }
    }

    pub(super) fn service_status(&self, request: &ServiceStatus) -> Answer {
        if usize::from(request.slot) >= self.here.service_count() {
            return Err(Status::NotFound);
        }
        let service = self.here.service(usize::from(request.slot));
        let epitaph = *service.epitaph.lock();
        ok(ServiceReport {
            id: service.id(),
            state: epitaph.state,
            fault: epitaph.fault,
            code: epitaph.code,
            rip: epitaph.rip,
            address: epitaph.address,
            rsp: epitaph.rsp,
            client: epitaph.client,
        })
    }

    pub(super) fn service_restart(&self, request: &ServiceRestart) -> Answer {
        self.target(request.service)?;
        let id = self.here.restart(request.service.index())?;
        ok(Restarted { id })
    }

    pub(super) fn service_kill(&self, request: &ServiceKill) -> Answer {
        let service = self.target(request.service)?;
        if !service.is_alive() || request.service.index() == self.slot {
            return Err(Status::State);
        }
        self.here.kill(request.service.index());
        ok(Done {})
    }

    pub(super) fn power_off(&self, request: &PowerOff) -> Answer {
        self.here.machine.power_off(request.status);
        ok(Done {})
    }
}
