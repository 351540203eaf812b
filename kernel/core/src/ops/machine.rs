//! Operations that tell of the machine and its time.

use super::{Answer, Call, ok};
use crate::prelude::*;

impl<M: Machine> Call<'_, M> {
    pub(super) fn machine_info(&self, _: &MachineInfo) -> Answer {
        let mut facts = self.machine.facts();
        facts.services = self.service_count() as u16;
        facts.frames = self.tables().frames.size();
        ok(facts)
    }

    pub(super) fn timer_set(&self, request: &TimerSet) -> Answer {
        let bell = Context::doorbell(self.slot);
        self.context(bell).deadline.store(request.at.0, Ordering::SeqCst);
        self.await_deadline(bell, request.at.0);
        ok(Done {})
    }
}
