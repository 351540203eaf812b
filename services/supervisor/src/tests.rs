//! The supervisor against a machine that dies in every way.

use caisson_proto::abi::{MAX_SERVICES, Status, doorbell};
use caisson_proto::addr::{ServiceId, VmId};
use caisson_proto::kernel::{FaultKind, ServiceReport, ServiceState, VmKind, VmReport, VmState};
use caisson_proto::supervisor::{End, ExitKind, Forgive, Notice, verdict};
use caisson_proto::wire::{Request, Words};
use proptest::prelude::*;

use super::*;

/// Slots: 0 supervisor, 1 console, 2 and 3 vmms, 4 memory, 5 sev-firmware, 6 the secure processor.
const VMMS: [usize; 2] = [2, 3];
const FIRMWARE: usize = 5;
const PROCESSOR: usize = 6;
const SERVICES: usize = 7;

struct Fake {
    states: Vec<ServiceReport>,
    started: Vec<usize>,
    ended: Option<u8>,
    now: u64,
    gone: u32,
    timer: Option<u64>,
    posted: Vec<Notice>,
    console_reads: bool,
    unwinding: u32,
    kinds: Vec<VmKind>,
    unprotected: Vec<usize>,
}

fn report(slot: usize, state: ServiceState) -> ServiceReport {
    ServiceReport {
        id: ServiceId::new(slot as u16, 0),
        state,
        fault: FaultKind::None,
        code: 0,
        rip: 0,
        address: 0,
        rsp: 0,
        client: 0,
    }
}

impl Fake {
    fn new() -> Self {
        let mut states: Vec<_> = (0..SERVICES).map(|slot| report(slot, ServiceState::Unstarted)).collect();
        states[0].state = ServiceState::Running;
        Self {
            states,
            started: Vec::new(),
            ended: None,
            now: 0,
            gone: 0,
            timer: None,
            posted: Vec::new(),
            console_reads: true,
            unwinding: 0,
            kinds: vec![VmKind::Plain, VmKind::Plain],
            unprotected: Vec::new(),
        }
    }

    fn die(&mut self, slot: usize, state: ServiceState, code: u64) {
        let generation = self.states[slot].id.generation();
        let fault = if state == ServiceState::Faulted { FaultKind::Exception } else { FaultKind::None };
        self.states[slot] =
            ServiceReport { id: ServiceId::new(slot as u16, generation), fault, code, ..report(slot, state) };
    }

    fn exit(&mut self, slot: usize, kind: ExitKind) {
        self.die(slot, ServiceState::Exited, kind as u64);
    }
}

impl Machine for Fake {
    fn status(&mut self, slot: u16) -> Result<ServiceReport, Status> {
        self.states.get(usize::from(slot)).copied().ok_or(Status::NotFound)
    }
    fn restart(&mut self, service: ServiceId) -> Result<ServiceId, Status> {
        if self.unwinding > 0 {
            self.unwinding -= 1;
            return Err(Status::State);
        }
        let state = &mut self.states[service.index()];
        assert_eq!(state.id, service);
        assert_ne!(state.state, ServiceState::Running);
        let first = state.state == ServiceState::Unstarted;
        let generation = service.generation() + u16::from(!first);
        *state = report(service.index(), ServiceState::Running);
        state.id = ServiceId::new(service.index() as u16, generation);
        self.started.push(service.index());
        Ok(state.id)
    }
    fn kill(&mut self, service: ServiceId) -> Result<(), Status> {
        let state = &mut self.states[service.index()];
        if state.state != ServiceState::Running || state.id != service {
            return Err(Status::State);
        }
        state.state = ServiceState::Killed;
        Ok(())
    }
    fn end_itself(&mut self) {
        self.states[0].state = ServiceState::Exited;
    }
    fn power_off(&mut self, verdict: u8) {
        assert!(self.ended.is_none());
        self.ended = Some(verdict);
    }
    fn now_ms(&mut self) -> u64 {
        self.now
    }
    fn timer_in(&mut self, ms: u64) {
        self.timer = Some(self.now + ms);
    }
    fn vm_gone(&mut self) {
        self.gone += 1;
    }
    fn post(&mut self, notice: &Notice) -> bool {
        if self.console_reads {
            self.posted.push(*notice);
        }
        self.console_reads
    }
    fn all_read(&mut self) -> bool {
        self.console_reads
    }
    /// VM n is the n-th vmm's; slot 0 of the kernel's table is empty, and so is every other from there on.
    fn vm(&mut self, slot: u16) -> Option<VmReport> {
        let at = usize::from(slot) / 2;
        let (kind, vmm) = (*self.kinds.get(at)?, *VMMS.get(at)?);
        let at = at as u16 * 2 + 1;
        let (handler, state) = (self.states[vmm].id, VmState::Alive);
        Some(VmReport { vm: VmId::new(at, 0), handler, kind, state, pages: 0, kernel_frames: 0, next: at + 1 })
    }
    fn log(&mut self, event: Event<'_>) {
        if let Event::Unprotected(id) = event {
            self.unprotected.push(id.index());
        }
    }
}

fn setup(generation: u16) -> Setup {
    let mut is_vmm = [false; MAX_SERVICES];
    let _ = VMMS.map(|slot| is_vmm[slot] = true);
    Setup {
        own: ServiceId::new(0, generation),
        services: SERVICES as u16,
        is_vmm,
        processor: Some([PROCESSOR as u16, FIRMWARE as u16]),
    }
}

fn running() -> (Supervisor, Fake) {
    let (mut supervisor, mut fake) = (Supervisor::new(), Fake::new());
    supervisor.start(&setup(0), &mut fake);
    (supervisor, fake)
}

/// Lets time and memory run until nothing happens any more.
fn run(supervisor: &mut Supervisor, fake: &mut Fake, memory_settles: bool) {
    for _ in 0..1000 {
        if fake.ended.is_some() {
            return;
        }
        if memory_settles && fake.gone > 0 && fake.states[4].state == ServiceState::Running {
            fake.gone = 0;
            supervisor.doorbell(doorbell::SETTLED, fake);
        } else if let Some(at) = fake.timer.take() {
            fake.now = fake.now.max(at);
            supervisor.doorbell(doorbell::TIMER, fake);
        } else {
            return;
        }
    }
}

#[test]
fn callees_are_started_before_their_callers() {
    let (_, fake) = running();
    assert_eq!(fake.started, [6, 5, 4, 3, 2, 1]);
    assert_eq!(fake.ended, None);
}

#[test]
fn a_faulted_service_is_restarted_and_told_of() {
    let (mut supervisor, mut fake) = running();
    fake.die(4, ServiceState::Faulted, 14 << 32);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[4].id.generation(), 1);
    let notice = fake.posted[0];
    assert_eq!((notice.slot, notice.state, notice.kind, notice.action), (4, 2, 1, 1));
    assert_eq!(fake.ended, None);
}

#[test]
fn a_restart_waits_until_the_calls_are_unwound() {
    let (mut supervisor, mut fake) = running();
    fake.unwinding = 3;
    fake.die(4, ServiceState::Faulted, 0);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[4].state, ServiceState::Faulted);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.states[4].state, ServiceState::Running);
}

#[test]
fn a_service_that_dies_again_and_again_ends_the_machine() {
    let (mut supervisor, mut fake) = running();
    for _ in 0..=limit::RESTARTS {
        fake.now += 100;
        fake.die(1, ServiceState::Faulted, 0);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    }
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::FAULTED));
    assert_eq!(fake.posted.last().unwrap().action, 0);
}

#[test]
fn the_machine_ends_when_the_last_vm_did_and_memory_settled() {
    let (mut supervisor, mut fake) = running();
    fake.exit(2, ExitKind::PoweredOff);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, None);
    fake.exit(3, ExitKind::PoweredOff);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.gone, 1);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::CLEAN));
    assert_eq!(fake.posted.len(), 2);
}

#[test]
fn memory_that_never_settles_is_a_fault() {
    let (mut supervisor, mut fake) = running();
    let _ = VMMS.map(|slot| fake.exit(slot, ExitKind::PoweredOff));
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut supervisor, &mut fake, false);
    assert_eq!(fake.ended, Some(verdict::FAULTED));
    assert!(fake.now >= 10_000);
}

#[test]
fn a_console_that_reads_nothing_only_delays_the_end() {
    let (mut supervisor, mut fake) = running();
    fake.console_reads = false;
    let _ = VMMS.map(|slot| fake.exit(slot, ExitKind::PoweredOff));
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut supervisor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::CLEAN));
}

#[test]
fn with_the_secure_processor_its_guests_end_and_no_others() {
    for (kinds, ended) in [
        ([VmKind::Plain, VmKind::Plain], vec![FIRMWARE]),
        ([VmKind::Plain, VmKind::SevEs], vec![3, FIRMWARE]),
        ([VmKind::Sev, VmKind::SevSnp], vec![2, 3, FIRMWARE]),
    ] {
        let (mut supervisor, mut fake) = running();
        fake.kinds = kinds.into();
        fake.die(PROCESSOR, ServiceState::Faulted, 0);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        assert_eq!(fake.unprotected, ended);
        let lives = |slot: usize| (fake.states[slot].state, fake.states[slot].id.generation());
        assert_eq!(lives(PROCESSOR), (ServiceState::Running, 1));
        assert_eq!(lives(FIRMWARE), (ServiceState::Running, 1));
        for (vmm, kind) in VMMS.into_iter().zip(kinds) {
            let expected = if kind == VmKind::Plain { ServiceState::Running } else { ServiceState::Killed };
            assert_eq!(lives(vmm), (expected, 0), "{kind:?}");
        }
    }
}

#[test]
fn who_speaks_for_the_processor_takes_nobody_along() {
    let (mut supervisor, mut fake) = running();
    fake.kinds = vec![VmKind::Sev, VmKind::Sev];
    fake.die(FIRMWARE, ServiceState::Faulted, 0);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert!(fake.unprotected.is_empty());
}

#[test]
fn a_reset_waits_for_the_old_memory_and_trusts_no_stale_bell() {
    let (mut supervisor, mut fake) = running();
    fake.exit(2, ExitKind::Reset);
    // This bell rang before the VM died and arrives with the news of its death.
    supervisor.doorbell(doorbell::SERVICE_DIED | doorbell::SETTLED, &mut fake);
    assert_eq!(fake.states[2].state, ServiceState::Exited);
    // This one rang before memory heard of the death.
    supervisor.doorbell(doorbell::SETTLED, &mut fake);
    assert_eq!(fake.states[2].state, ServiceState::Exited);
    assert_eq!(fake.gone, 2);
    supervisor.doorbell(doorbell::SETTLED, &mut fake);
    assert_eq!(fake.states[2].state, ServiceState::Running);
    assert_eq!(fake.ended, None);
}

#[test]
fn a_guest_that_resets_without_end_is_ended() {
    let (mut supervisor, mut fake) = running();
    fake.exit(3, ExitKind::PoweredOff);
    for _ in 0..=limit::RESTARTS {
        fake.exit(2, ExitKind::Reset);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        run(&mut supervisor, &mut fake, true);
    }
    assert_eq!(fake.ended, Some(verdict::GUEST_CRASHED));
}

#[test]
fn each_end_of_a_vm_has_its_verdict() {
    for (kind, expected) in [
        (ExitKind::PoweredOff, verdict::CLEAN),
        (ExitKind::TestEnded, verdict::CLEAN),
        (ExitKind::Crashed, verdict::GUEST_CRASHED),
        (ExitKind::BadSetup, verdict::BAD_SETUP),
        (ExitKind::Panicked, verdict::FAULTED),
    ] {
        let (mut supervisor, mut fake) = running();
        fake.exit(2, kind);
        fake.exit(3, ExitKind::PoweredOff);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        run(&mut supervisor, &mut fake, true);
        assert_eq!(fake.ended, Some(expected), "{kind:?}");
    }
}

/// Lets both VMs power off, and returns the verdict.
fn over(supervisor: &mut Supervisor, fake: &mut Fake) -> Option<u8> {
    let _ = VMMS.map(|slot| fake.exit(slot, ExitKind::PoweredOff));
    supervisor.doorbell(doorbell::SERVICE_DIED, fake);
    run(supervisor, fake, true);
    fake.ended
}

#[test]
fn a_service_that_panics_casts_doubt_on_the_machine() {
    let (mut supervisor, mut fake) = running();
    fake.exit(4, ExitKind::Panicked);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[4].state, ServiceState::Running);
    assert_eq!(over(&mut supervisor, &mut fake), Some(verdict::FAULTED));
}

#[test]
fn a_service_is_ended_on_request_and_started_again() {
    let (mut supervisor, mut fake) = running();
    let agent = ServiceId::new(4, 0);
    let mut ask = |request: Words, fake: &mut Fake| supervisor.handle(agent, &request, fake).0;
    assert_eq!(ask(End { slot: 1 }.encode(), &mut fake), Status::Ok);
    assert_eq!(ask(End { slot: 1 }.encode(), &mut fake), Status::State);
    assert_eq!(ask(End { slot: 7 }.encode(), &mut fake), Status::NotFound);
    assert_eq!(ask(Forgive { slot: 7 }.encode(), &mut fake), Status::NotFound);
    assert_eq!(ask([9; 8], &mut fake), Status::Malformed);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(fake.states[1].state, ServiceState::Running);
    assert_eq!(over(&mut supervisor, &mut fake), Some(verdict::CLEAN), "nothing was wrong with it");
}

#[test]
fn a_service_that_is_forgiven_may_be_restarted_without_end() {
    let (mut supervisor, mut fake) = running();
    for _ in 0..3 * limit::RESTARTS {
        assert_eq!(supervisor.handle(ServiceId::new(4, 0), &Forgive { slot: 1 }.encode(), &mut fake).0, Status::Ok);
        fake.die(1, ServiceState::Faulted, 0);
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        assert_eq!(fake.states[1].state, ServiceState::Running);
    }
}

#[test]
fn a_successor_takes_over_whatever_its_predecessor_left() {
    let (mut supervisor, mut fake) = running();
    // One VM is over already; another and memory die with nobody to see to it.
    fake.exit(2, ExitKind::PoweredOff);
    supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    assert_eq!(supervisor.handle(ServiceId::new(4, 0), &End { slot: 0 }.encode(), &mut fake).0, Status::Ok);
    fake.exit(3, ExitKind::Reset);
    fake.die(4, ServiceState::Faulted, 0);
    fake.states[1] = report(1, ServiceState::Unstarted);
    let (mut successor, before) = (Supervisor::new(), fake.posted.len());
    successor.start(&setup(1), &mut fake);
    assert_eq!((fake.posted[before].slot, fake.posted[before].state), (0, ServiceState::Faulted as u8));
    run(&mut successor, &mut fake, true);
    let states = [1, 2, 3, 4].map(|slot| fake.states[slot].state);
    use ServiceState::{Exited, Running};
    assert_eq!(states, [Running, Exited, Running, Running]);
    fake.exit(3, ExitKind::PoweredOff);
    successor.doorbell(doorbell::SERVICE_DIED, &mut fake);
    run(&mut successor, &mut fake, true);
    assert_eq!(fake.ended, Some(verdict::FAULTED));
}

proptest! {
    /// Whatever dies, in any order: with all VMs over, the machine ends once, and with the worst verdict.
    #[test]
    fn it_always_ends(deaths in prop::collection::vec((1..5usize, 0..6u64, any::<bool>()), 0..60)) {
        let (mut supervisor, mut fake) = running();
        let mut faulted = false;
        for (slot, code, settle) in deaths {
            if fake.states[slot].state != ServiceState::Running {
                continue;
            }
            fake.now += 500;
            let state = if code == 5 { ServiceState::Faulted } else { ServiceState::Exited };
            faulted |= fake.ended.is_none() && (!VMMS.contains(&slot) || code >= 4);
            fake.die(slot, state, code);
            supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
            if settle {
                run(&mut supervisor, &mut fake, true);
            }
        }
        run(&mut supervisor, &mut fake, true);
        for slot in VMMS {
            if fake.ended.is_none() && fake.states[slot].state == ServiceState::Running {
                fake.exit(slot, ExitKind::PoweredOff);
            }
        }
        supervisor.doorbell(doorbell::SERVICE_DIED, &mut fake);
        run(&mut supervisor, &mut fake, true);
        prop_assert!(fake.ended.is_some());
        prop_assert!(!faulted || fake.ended == Some(verdict::FAULTED));
    }
}
