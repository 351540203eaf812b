//! The service, its kernel and its clients.

use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::{Gfn, Gpa, ServiceId, Tsc, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, Features, VmKind};
use caisson_proto::wire::{Reply, Request};
use caisson_qemu_psp::Asid;
use caisson_qemu_psp::asids::Holder;
use caisson_sev_firmware::{Firmware, Pages, Phase};

use crate::kernel::{Event, Fake};

/// memory, which speaks for the platform.
pub const MEMORY: ServiceId = ServiceId::new(3, 0);
/// notifier, which does, too.
pub const NOTIFIER: ServiceId = ServiceId::new(4, 0);

/// A vmm.
pub const fn vmm(index: u16) -> ServiceId {
    ServiceId::new(10 + index, 0)
}

/// An SNP guest's policy that everybody accepts.
pub const SNP_POLICY: u64 = 0x3_0000;
/// An SEV-ES guest's.
pub const ES_POLICY: u32 = 4;

/// Pages that a client lends.
pub struct LentPages {
    pub bytes: Vec<u8>,
    pub writable: bool,
}

impl Pages for LentPages {
    fn count(&self) -> u64 {
        self.bytes.len() as u64 / 4096
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let from = self.bytes.get(offset..offset + into.len());
        from.is_some_and(|from| {
            into.copy_from_slice(from);
            true
        })
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        assert!(self.writable);
        let into = self.bytes.get_mut(offset..offset + bytes.len());
        into.is_some_and(|into| {
            into.copy_from_slice(bytes);
            true
        })
    }
}

pub struct World {
    pub fake: Fake,
    pub firmware: Box<Firmware>,
    /// Nothing was injected that makes the kernel's account differ from the processor's.
    pub honest: bool,
}

impl World {
    /// With nothing initialised.
    pub fn new() -> Self {
        Self::on(Fake::new())
    }

    pub fn on(fake: Fake) -> Self {
        let mut world = Self { fake, firmware: Box::default(), honest: true };
        world.restart();
        world.pump();
        world
    }

    /// With SEV and SEV-ES initialised.
    pub fn sev() -> Self {
        let mut world = Self::new();
        world.init();
        world.fake.log.clear();
        world
    }

    /// With SNP, too.
    pub fn snp() -> Self {
        let mut world = Self::new();
        assert_eq!(world.ok(MEMORY, &SnpInit { rmp: true }).status, Status::Ok);
        world.init();
        world.fake.log.clear();
        world
    }

    fn init(&mut self) {
        let frame = caisson_proto::addr::Frame(crate::kernel::DONATED >> 12);
        assert_eq!(self.ok(MEMORY, &Init { frame, pages: 512 }).status, Status::Ok);
    }

    /// Starts the service, or starts it anew: nothing is left of the one before.
    pub fn restart(&mut self) {
        *self.firmware = Firmware::new();
        self.fake.again = false;
        let now = Tsc(self.fake.now);
        self.firmware.start(&Fake::machine(Features::SEV), &[3, 4], now, &mut self.fake);
    }

    /// One thing happens that was under way. False if nothing is.
    pub fn tick(&mut self) -> bool {
        let now = Tsc(self.fake.now);
        let bell = if std::mem::take(&mut self.fake.again) {
            doorbell::TICKET
        } else if self.fake.work() {
            doorbell::INTERRUPT
        } else if self.fake.complete_write_back() {
            doorbell::TICKET
        } else {
            return false;
        };
        self.firmware.doorbell(bell, now, &mut self.fake);
        self.check();
        true
    }

    /// Until nothing is under way.
    pub fn pump(&mut self) {
        for _ in 0..100_000 {
            if !self.tick() {
                return;
            }
        }
        panic!("it never ends");
    }

    /// Time goes by; the timer rings if it was set.
    pub fn elapse(&mut self, ms: u64) {
        self.fake.now += ms;
        if self.fake.timer != 0 && self.fake.now >= self.fake.timer {
            self.fake.timer = 0;
            self.firmware.doorbell(doorbell::TIMER, Tsc(self.fake.now), &mut self.fake);
        }
    }

    /// Sends a request; the status, and its reply.
    pub fn ask<R: Request>(
        &mut self, client: ServiceId, request: &R, pages: Option<&mut LentPages>,
    ) -> Result<R::Reply, Status> {
        let now = Tsc(self.fake.now);
        let pages = pages.map(|pages| pages as &mut dyn Pages);
        match self.firmware.handle(client, &request.encode(), pages, now, &mut self.fake) {
            (Status::Ok, words) => Ok(R::Reply::decode(&words).expect("a reply")),
            (status, words) => {
                assert_eq!(words, [0; 8]);
                Err(status)
            }
        }
    }

    /// Queues a job.
    pub fn send<R: Request<Reply = Queued>>(
        &mut self, client: ServiceId, request: &R, parts: &[&[u8]],
    ) -> Result<JobId, Status> {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
        }
        let mut lent = LentPages { bytes, writable: false };
        let pages = (!parts.is_empty()).then_some(&mut lent);
        self.ask(client, request, pages).map(|queued| queued.job)
    }

    /// How a job stands, and what it gave.
    pub fn result(&mut self, client: ServiceId, job: JobId) -> Result<(JobReport, Vec<u8>), Status> {
        let mut lent = LentPages { bytes: vec![0xee; 8 * 4096], writable: true };
        let report = self.ask(client, &JobResult { job }, Some(&mut lent))?;
        let bytes = report.bytes as usize;
        assert!(lent.bytes[bytes..].iter().all(|byte| *byte == 0xee), "more than it says");
        lent.bytes.truncate(bytes);
        Ok((report, lent.bytes))
    }

    /// A job from its request to its result.
    pub fn job<R: Request<Reply = Queued>>(
        &mut self, client: ServiceId, request: &R, parts: &[&[u8]],
    ) -> Result<(JobReport, Vec<u8>), Status> {
        let job = self.send(client, request, parts)?;
        self.pump();
        let rung = self.fake.bells.iter().position(|bell| *bell == client);
        self.fake.bells.remove(rung.expect("the client is rung"));
        let result = self.result(client, job)?;
        assert_eq!(result.0.state, JobState::Ended);
        assert_eq!(self.result(client, job), Err(Status::NotFound), "it is told once");
        Ok(result)
    }

    /// The same, without data.
    pub fn ok<R: Request<Reply = Queued>>(&mut self, client: ServiceId, request: &R) -> JobReport {
        self.job(client, request, &[]).expect("it is queued").0
    }

    pub fn platform(&mut self) -> Platform {
        self.ask(vmm(0), &PlatformStatus {}, None).expect("always")
    }

    /// Makes a VM with 16 pages and starts its launch.
    pub fn launch(&mut self, slot: u16, kind: VmKind) -> (VmId, JobReport) {
        let vm = self.fake.vm(slot, vmm(slot), kind, 16);
        let report = self.start(vm, kind);
        (vm, report)
    }

    /// Starts the launch of a VM.
    pub fn start(&mut self, vm: VmId, kind: VmKind) -> JobReport {
        let client = vmm(vm.index() as u16);
        match kind {
            VmKind::SevSnp => self.ok(client, &snp_start(vm)),
            VmKind::SevEs => self.ok(client, &LaunchStart { vm, policy: ES_POLICY, owner: false }),
            _ => self.ok(client, &LaunchStart { vm, policy: 0, owner: false }),
        }
    }

    /// Launches a VM until it runs; its first 4 pages are measured.
    pub fn run_guest(&mut self, slot: u16, kind: VmKind) -> VmId {
        let (vm, report) = self.launch(slot, kind);
        assert_eq!(report.status, Status::Ok, "{report:?}");
        let client = vmm(slot);
        let region = RegisterRegion { vm, gfn: Gfn(0), pages: 16, known: false };
        assert_eq!(self.ok(client, &region).status, Status::Ok);
        if kind == VmKind::SevSnp {
            let page_type = SnpPageType::Normal;
            let update = SnpLaunchUpdate { vm, gfn: Gfn(0), pages: 4, page_type, permissions: 0 };
            assert_eq!(self.ok(client, &update).status, Status::Ok);
            let finish = SnpLaunchFinish { vm, flags: SnpFinish::empty(), host_0: 1, host_1: 2, host_2: 3, host_3: 4 };
            assert_eq!(self.ok(client, &finish).status, Status::Ok);
        } else {
            assert_eq!(self.ok(client, &LaunchUpdate { vm, gpa: Gpa(0), bytes: 0x4000 }).status, Status::Ok);
            let (report, measurement) = self.job(client, &LaunchMeasure { vm }, &[]).expect("it is queued");
            assert_eq!((report.status, measurement.len()), (Status::Ok, 48));
            assert_eq!(self.ok(client, &LaunchFinish { vm }).status, Status::Ok);
        }
        vm
    }

    /// The whole end of a VM.
    pub fn bury(&mut self, vm: VmId) -> JobReport {
        self.fake.kill(vm);
        let report = self.ok(MEMORY, &Decommission { vm });
        self.fake.release(vm);
        report
    }

    pub fn state(&self, asid: u32) -> AsidState {
        self.fake.row(asid).state
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.fake.log)
    }

    /// What must hold at any time.
    pub fn check(&self) {
        for (at, row) in self.fake.rows.iter().enumerate() {
            let held = |row: &crate::kernel::Row| matches!(row.state, AsidState::Bound | AsidState::Active);
            let twice = self.fake.rows.iter().skip(at + 1).any(|other| held(row) && held(other) && other.vm == row.vm);
            assert!(!twice, "{:?} has two ASIDs", row.vm);
        }
        if self.fake.command.is_some() || !self.honest {
            return;
        }
        for (asid, row) in (1u16..).zip(&self.fake.rows) {
            let holder = self.fake.processor.asids().holder(Asid(asid));
            let expected = match (row.state, row.kind) {
                (AsidState::Active, VmKind::SevSnp) => Some(Holder::Snp(row.handle >> 12)),
                (AsidState::Active, _) => Some(Holder::Sev(row.handle as u32)),
                _ => None,
            };
            assert_eq!(holder, expected, "ASID {asid}: {row:?}");
            assert_eq!(self.fake.board.keys.contains_key(&asid), expected.is_some(), "ASID {asid}'s key");
        }
    }

    /// What must hold while nothing is under way.
    pub fn check_quiet(&self) {
        self.check();
        let account = self.firmware.account();
        for guest in account.guests.all() {
            let row = self.fake.row(guest.asid);
            let alive = self.fake.vms.iter().any(|vm| vm.id == guest.vm && vm.handler != crate::kernel::GONE);
            if alive {
                let state = if guest.phase == Phase::Bound { AsidState::Bound } else { AsidState::Active };
                assert_eq!((row.vm, row.state), (guest.vm, state), "{guest:?}");
            }
        }
        for (asid, row) in (1..).zip(&self.fake.rows) {
            let held = matches!(row.state, AsidState::Bound | AsidState::Active);
            let known = account.guests.get(row.vm).is_some_and(|guest| guest.asid == asid);
            assert!(!held || known || account.leaked.contains(asid), "ASID {asid} is lost: {row:?}");
        }
    }
}

pub fn snp_start(vm: VmId) -> SnpLaunchStart {
    SnpLaunchStart { vm, policy: SNP_POLICY, workarounds_low: 0, workarounds_high: 0 }
}
