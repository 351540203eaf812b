//! Operations that tell of the machine and its time.

use super::{Answer, Call, ok};
use crate::prelude::*;
use caisson_proto::kernel::Machine as Facts;

impl<M: Machine> Call<'_, M> {
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
