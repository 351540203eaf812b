//! The supervisor, on a machine whose services fare as the input says.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::abi::{MAX_SERVICES, Status, doorbell};
use caisson_proto::addr::{ServiceId, VmId};
use caisson_proto::kernel::{FaultKind, ServiceReport, ServiceState, VmKind, VmReport, VmState};
use caisson_proto::supervisor::{Notice, SupervisorCall};
use caisson_proto::wire::Field;
use caisson_supervisor::{Event, Machine, Setup, Supervisor};

const SLOTS: usize = 6;
const OWN: usize = 0;

struct Fake {
    services: Vec<ServiceReport>,
    /// A service that can't be started, and why.
    refusal: Option<Status>,
    now: u64,
    takes: u8,
    ended: bool,
    /// The supervisor is a new one.
    succeeded: bool,
}

fn report(slot: usize, generation: u16, state: ServiceState) -> ServiceReport {
    let id = ServiceId::new(slot as u16, generation);
    ServiceReport { id, state, fault: FaultKind::None, code: 0, rip: 0, address: 0, rsp: 0, client: 0 }
}

impl Machine for Fake {
    fn status(&mut self, slot: u16) -> Result<ServiceReport, Status> {
        self.services.get(usize::from(slot)).copied().ok_or(Status::NotFound)
    }
    fn restart(&mut self, service: ServiceId) -> Result<ServiceId, Status> {
        if let Some(status) = self.refusal {
            return Err(status);
        }
        let slot = service.index();
        let place = &mut self.services[slot];
        assert_eq!(place.id, service, "another generation is meant");
        assert_ne!(place.state, ServiceState::Running, "it runs");
        assert_ne!(slot, OWN);
        *place = report(slot, service.generation() + 1, ServiceState::Running);
        Ok(place.id)
    }
    fn kill(&mut self, service: ServiceId) -> Result<(), Status> {
        let place = &mut self.services[service.index()];
        assert_eq!(place.id, service, "another generation is meant");
        assert_ne!(service.index(), OWN);
        if place.state != ServiceState::Running {
            return Err(Status::State);
        }
        place.state = ServiceState::Killed;
        Ok(())
    }
    fn vm(&mut self, slot: u16) -> Option<VmReport> {
        let handler = self.services[2].id;
        let (vm, kind, state) = (VmId::new(0, 0), VmKind::Sev, VmState::Alive);
        (slot == 0).then_some(VmReport {
            vm,
            handler,
            kind,
            state,
            pages: 0,
            kernel_frames: 0,
            next: 1,
            sequence: Default::default(),
        })
    }
    fn end_itself(&mut self) {
        self.services[OWN] = report(OWN, self.services[OWN].id.generation() + 1, ServiceState::Running);
        self.succeeded = true;
    }
    fn power_off(&mut self, _: u8) {
        assert!(!self.ended, "ended twice");
        self.ended = true;
    }
    fn now_ms(&mut self) -> u64 {
        self.now
    }
    fn timer_in(&mut self, _: u64) {}
    fn vm_gone(&mut self) {}
    fn post(&mut self, _: &Notice) -> bool {
        let taken = self.takes > 0;
        self.takes = self.takes.saturating_sub(1);
        taken
    }
    fn all_read(&mut self) -> bool {
        self.takes > 0
    }
    fn log(&mut self, _: Event<'_>) {}
}

#[derive(Debug, Arbitrary)]
enum Step {
    Bells(u64),
    Settled,
    Tick(u32),
    /// A service ends, in any way and with any words.
    Dies {
        slot: u8,
        state: u8,
        fault: u8,
        code: u64,
        word: u64,
    },
    Refuse(Option<u8>),
    Takes(u8),
    /// A call: some are requests.
    Call {
        sender: u8,
        op: u8,
        slot: u8,
        word: u64,
    },
}

/// The supervisor: restarts what may be, ends the machine once, whatever dies and whoever rings.
pub fn supervisor(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut services: Vec<_> = (0..SLOTS).map(|slot| report(slot, 0, ServiceState::Unstarted)).collect();
    services[OWN].state = ServiceState::Running;
    let mut setup =
        Setup { own: services[OWN].id, services: SLOTS as u16, is_vmm: [false; MAX_SERVICES], processor: Some([4, 5]) };
    (setup.is_vmm[2], setup.is_vmm[3]) = (true, true);
    let mut machine = Fake { services, refusal: None, now: 0, takes: 4, ended: false, succeeded: false };
    let mut supervisor = Box::new(Supervisor::new());
    supervisor.start(&setup, &mut machine);
    for _ in 0..300 {
        if machine.ended {
            return;
        }
        let Ok(step) = input.arbitrary::<Step>() else { return };
        match step {
            Step::Bells(bits) => supervisor.doorbell(bits, &mut machine),
            Step::Settled => supervisor.doorbell(doorbell::SETTLED, &mut machine),
            Step::Tick(ms) => {
                machine.now += u64::from(ms % 100_000);
                supervisor.doorbell(doorbell::TIMER, &mut machine);
            }
            Step::Dies { slot, state, fault, code, word } => {
                let slot = usize::from(slot) % SLOTS;
                let Some(state) = ServiceState::from_word(u64::from(state % 5)) else { continue };
                let place = &mut machine.services[slot];
                if slot == OWN || place.state != ServiceState::Running || state == ServiceState::Unstarted {
                    continue;
                }
                let fault = FaultKind::from_word(u64::from(fault % 5)).unwrap_or(FaultKind::None);
                *place = ServiceReport { state, fault, code: code % 300, rip: word, address: word, ..*place };
                supervisor.doorbell(doorbell::SERVICE_DIED, &mut machine);
            }
            Step::Refuse(status) => {
                machine.refusal = status.and_then(|status| Status::from_word(u64::from(status % 14) + 1));
            }
            Step::Takes(count) => machine.takes = count,
            Step::Call { sender, op, slot, word } => {
                let words = [u64::from(op % 4), u64::from(slot), word, 0, 0, 0, 0, 0];
                let known = SupervisorCall::decode(&words).is_ok();
                let (status, _) = supervisor.handle(ServiceId::new(sender.into(), 0), &words, &mut machine);
                assert_eq!(known, status != Status::Malformed);
                if std::mem::take(&mut machine.succeeded) {
                    *supervisor = Supervisor::new();
                    setup.own = machine.services[OWN].id;
                    supervisor.start(&setup, &mut machine);
                }
            }
        }
        if input.is_empty() {
            return;
        }
    }
}
