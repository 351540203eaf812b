//! The supervisor; and someone who makes it kill services.

use caisson_proto::abi::{Lease, MAX_SERVICES, Status, doorbell};
use caisson_proto::addr::{ServiceId, Tsc};
use caisson_proto::kernel::{
    PowerOff, ServiceKill, ServiceReport, ServiceRestart, ServiceStatus, TimerSet, VmInfo, VmReport,
};
use caisson_proto::supervisor::Notice;
use caisson_proto::wire::Words;
use caisson_supervisor::{Event, Machine, Setup, Supervisor};

use super::{Server, serve};
use crate::history::What;
use crate::service::Sys;
use crate::world::KHZ;

/// The bell at which a service is killed.
pub const KILL: u64 = 1 << 20;

struct OnKernel<'a, 'b>(&'a Sys<'b>);

impl OnKernel<'_, '_> {
    fn say(&self, text: &'static str, number: u64) {
        if !self.0.stopped() {
            self.0.world.note(0, What::Said(text, number));
        }
    }
}

impl Machine for OnKernel<'_, '_> {
    fn status(&mut self, slot: u16) -> Result<ServiceReport, Status> {
        self.0.ask(&ServiceStatus { slot })
    }

    fn restart(&mut self, service: ServiceId) -> Result<ServiceId, Status> {
        self.0.ask(&ServiceRestart { service }).map(|restarted| restarted.id)
    }

    fn kill(&mut self, service: ServiceId) -> Result<(), Status> {
        self.0.ask(&ServiceKill { service }).map(|_| ())
    }

    fn end_itself(&mut self) {
        self.0.world.fail(|| "the supervisor was told to end".into());
    }

    fn power_off(&mut self, status: u8) {
        let _ = self.0.ask(&PowerOff { status });
    }

    fn now_ms(&mut self) -> u64 {
        self.0.world.now.get() / KHZ
    }

    fn timer_in(&mut self, ms: u64) {
        let _ = self.0.ask(&TimerSet { at: Tsc(self.0.world.now.get() + ms * KHZ) });
    }

    fn vm(&mut self, slot: u16) -> Option<VmReport> {
        self.0.ask(&VmInfo { slot }).ok()
    }

    fn vm_gone(&mut self) {
        let _ = self.0.ring(self.0.world.manifest.memory, doorbell::VM_GONE);
    }

    fn post(&mut self, _: &Notice) -> bool {
        true
    }

    fn all_read(&mut self) -> bool {
        true
    }

    fn log(&mut self, event: Event<'_>) {
        match event {
            Event::Started(id) => self.say("supervisor: started", id.bits().into()),
            Event::NotStarted(slot, _) => self.say("supervisor: not started", slot.into()),
            Event::Died(report, _) => self.say("supervisor: died", report.id.bits().into()),
            Event::Asked(slot, _) => self.say("supervisor: asked", slot.into()),
            Event::Succeeds => self.say("supervisor: succeeds", 0),
            Event::Unprotected(id) => self.say("supervisor: unprotected", id.bits().into()),
            Event::GivenUp(slot) => {
                self.0.world.given_up.set(true);
                self.say("supervisor: given up", slot.into());
            }
            Event::Settled => {
                self.0.world.settled.set(true);
                self.say("supervisor: settled", 0);
            }
            Event::NotSettled => self.0.world.fail(|| "memory did not settle".into()),
            Event::Ending(verdict) => self.say("supervisor: ending", verdict.into()),
        }
    }
}

struct Image<'a, 'b> {
    supervisor: Box<Supervisor>,
    machine: OnKernel<'a, 'b>,
}

impl Server for Image<'_, '_> {
    fn call(&mut self, sender: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
        self.machine.0.world.fail(|| format!("{sender:?} called the supervisor"));
        (Status::Malformed, [0; 8])
    }

    fn doorbell(&mut self, bits: u64) {
        let sys = self.machine.0;
        if bits & KILL != 0
            && let Some(slot) = sys.world.kill.take()
            && let Ok(report) = self.machine.status(slot as u16)
        {
            self.machine.say("killing", report.id.bits().into());
            let _ = sys.ask(&ServiceKill { service: report.id });
        }
        self.supervisor.doorbell(bits & !KILL, &mut self.machine);
    }
}

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let manifest = &sys.world.manifest;
    let mut is_vmm = [false; MAX_SERVICES];
    for (slot, is) in is_vmm.iter_mut().enumerate() {
        *is = manifest.is_vmm(slot);
    }
    let (own, services) = (ServiceId::new(sys.slot as u16, 0), manifest.services.len() as u16);
    let setup = Setup { own, services, is_vmm, processor: None };
    let mut image = Image { supervisor: Box::new(Supervisor::new()), machine: OnKernel(sys) };
    image.supervisor.start(&setup, &mut image.machine);
    serve(sys, &mut image);
}
