//! Operations that tell of the machine and its time.

use core::sync::atomic::Ordering;

use super::{Answer, Call, ok};
use crate::{context::Context, machine::Machine};
use caisson_proto::prelude::*;

impl<M: Machine> Call<'_, M> {
    pub(super) fn machine_info(&self, _: &MachineInfo) -> Answer {
        let mut facts = self.machine.facts();
        facts.services = self.service_count() as u16;
        facts.frames = self.tables().frames.size();
        ok(facts)
    }

    pub(super) fn timer_set(&self, request: &TimerSet) -> Answer {
        self.caller.timer.store(request.at.0, Ordering::SeqCst);
        if request.at.0 != 0 {
            self.await_deadline(Context::doorbell(self.slot), request.at.0);
        }
        ok(Done {})
    }
}
