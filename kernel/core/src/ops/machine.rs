//! Operations that tell of the machine and its time.

use core::sync::atomic::Ordering;

use caisson_proto::kernel::TimerSet;
use caisson_proto::wire::Done;

use super::{Answer, Call, ok};
use crate::context::Context;
use crate::machine::Machine;

impl<M: Machine> Call<'_, M> {
    pub(super) fn machine_info(&self) -> Answer {
        let mut facts = self.here.machine.facts();
        facts.services = self.here.service_count() as u16;
        facts.frames = self.here.tables().frames.as_ref().map_or(0, |frames| frames.len());
        ok(facts)
    }

    pub(super) fn timer_set(&self, request: &TimerSet) -> Answer {
        self.service.timer.store(request.at.0, Ordering::SeqCst);
        if request.at.0 != 0 {
            self.here.await_deadline(Context::doorbell(self.slot), request.at.0);
        }
        ok(Done {})
    }
}
