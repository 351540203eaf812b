//! A machine whose services die in every way.

use caisson_proto::abi::{MAX_SERVICES, Status};
use caisson_proto::addr::{ServiceId, VmId};
use caisson_proto::kernel::{FaultKind, ServiceReport, ServiceState, VmKind, VmReport, VmState};
use caisson_proto::supervisor::{ExitKind, Notice};

use crate::{Event, Machine, Setup};

/// Slots: 0 supervisor, 1 console, 2 and 3 vmms, 4 memory, 5 sev-firmware, 6 the secure processor.
pub const VMMS: [usize; 2] = [2, 3];
pub const FIRMWARE: usize = 5;
pub const PROCESSOR: usize = 6;
pub const SERVICES: usize = 7;

pub struct Fake {
    pub states: Vec<ServiceReport>,
    pub started: Vec<usize>,
    pub ended: Option<u8>,
    pub now: u64,
    pub gone: u32,
    pub timer: Option<u64>,
    pub posted: Vec<Notice>,
    pub console_reads: bool,
    pub unwinding: u32,
    pub kinds: Vec<VmKind>,
    pub unprotected: Vec<usize>,
}

pub fn report(slot: usize, state: ServiceState) -> ServiceReport {
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
    pub fn new() -> Self {
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

    pub fn die(&mut self, slot: usize, state: ServiceState, code: u64) {
        let generation = self.states[slot].id.generation();
        let fault = if state == ServiceState::Faulted { FaultKind::Exception } else { FaultKind::None };
        self.states[slot] =
            ServiceReport { id: ServiceId::new(slot as u16, generation), fault, code, ..report(slot, state) };
    }

    pub fn exit(&mut self, slot: usize, kind: ExitKind) {
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
        Some(VmReport {
            vm: VmId::new(at, 0),
            handler,
            kind,
            state,
            pages: 0,
            kernel_frames: 0,
            next: at + 1,
            sequence: Default::default(),
        })
    }
    fn log(&mut self, event: Event<'_>) {
        if let Event::Unprotected(id) = event {
            self.unprotected.push(id.index());
        }
    }
}

pub fn setup(generation: u16) -> Setup {
    let mut is_vmm = [false; MAX_SERVICES];
    let _ = VMMS.map(|slot| is_vmm[slot] = true);
    Setup {
        own: ServiceId::new(0, generation),
        services: SERVICES as u16,
        is_vmm,
        processor: Some([PROCESSOR as u16, FIRMWARE as u16]),
    }
}
