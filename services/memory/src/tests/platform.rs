//! The secure processor, before a sev-firmware that takes its time, fails and dies.

use caisson_proto::firmware::*;
use caisson_proto::kernel::{Features, Machine, MachineInfo};

use super::*;

/// The service: what it was asked, what it tells, and how its jobs stand.
struct Service {
    features: Features,
    asked: Vec<FirmwareCall>,
    platform: caisson_proto::firmware::Platform,
    /// What it answers to requests of jobs that aren't to be queued.
    refuses: Option<Status>,
    /// That is for SNP's initialisation not so.
    takes_snp: bool,
    /// It doesn't even tell of its platform.
    silent: bool,
    job: Option<Result<JobReport, Status>>,
    later: u32,
}

const RUNNING: JobReport = JobReport {
    state: JobState::Running,
    status: Status::Ok,
    cause: Cause::Nobody,
    command: 0,
    firmware: 0,
    bytes: 0,
    done: 0,
};
const ENDED: JobReport = JobReport { state: JobState::Ended, ..RUNNING };

fn service(features: Features) -> Service {
    let platform = caisson_proto::firmware::Platform {
        support: SevSupport::Present,
        life: Life::Ready,
        sev: PlatformState::Uninit,
        snp: false,
        jobs: 0,
        leaked_asids: 0,
        leaked_pages: 0,
        flushes: 0,
    };
    Service {
        features,
        asked: Vec::new(),
        platform,
        refuses: None,
        takes_snp: false,
        silent: false,
        job: None,
        later: 0,
    }
}

impl Service {
    /// What was asked that isn't a question.
    fn jobs(&mut self) -> Vec<FirmwareCall> {
        let asked = std::mem::take(&mut self.asked);
        let question =
            |call: &FirmwareCall| matches!(call, FirmwareCall::PlatformStatus(_) | FirmwareCall::JobResult(_));
        asked.into_iter().filter(|call| !question(call)).collect()
    }
}

impl Kernel for Service {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        assert_eq!(request.encode(), MachineInfo {}.encode());
        let machine =
            Machine { cpus: 1, tsc_khz: 1, features: self.features, frames: 0, asids: 16, services: 6, sev_asids: 0 };
        Ok(R::Reply::decode(&machine.encode()).unwrap())
    }
    fn firmware<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        let call = FirmwareCall::decode(&request.encode()).unwrap();
        self.asked.push(call);
        let words = match call {
            FirmwareCall::PlatformStatus(_) if self.silent => return Err(Status::Died),
            FirmwareCall::PlatformStatus(_) => self.platform.encode(),
            FirmwareCall::JobResult(_) => self.job.unwrap_or(Err(Status::NotFound))?.encode(),
            _ => match self.refuses {
                Some(status) if !(self.takes_snp && matches!(call, FirmwareCall::SnpInit(_))) => return Err(status),
                _ => {
                    self.job = Some(Ok(RUNNING));
                    let job = if matches!(call, FirmwareCall::SnpInit(_)) { SNP_JOB } else { INIT_JOB };
                    Queued { job }.encode()
                }
            },
        };
        Ok(R::Reply::decode(&words).unwrap())
    }
    fn post(&mut self, _: &Reclaimed) -> bool {
        true
    }
    fn settle(&mut self) {}
    fn want(&mut self, _: u64) {}
    fn settled(&mut self) {}
    fn again(&mut self) -> bool {
        true
    }
    fn later(&mut self) {
        self.later += 1;
    }
}

fn begun(service: &mut Service) -> crate::platform::Platform {
    let mut platform = crate::platform::Platform::new();
    platform.begin(service);
    platform
}

const SNP_JOB: JobId = JobId(6);
const INIT_JOB: JobId = JobId(7);
const INIT: FirmwareCall = FirmwareCall::Init(Init { frame: Frame(0), pages: 0 });
const SNP_INIT: FirmwareCall = FirmwareCall::SnpInit(SnpInit { rmp: true });

#[test]
fn without_sev_nothing_is_asked() {
    let mut service = service(Features::WBNOINVD);
    begun(&mut service).look(&mut service);
    assert!(service.asked.is_empty());
}

#[test]
fn snp_is_initialised_before_the_rest() {
    let mut service = service(Features::SEV | Features::SNP);
    let mut platform = begun(&mut service);
    assert_eq!(service.jobs(), [SNP_INIT, INIT], "and no launch in between");
    platform.look(&mut service);
    assert_eq!(service.jobs(), [], "they are under way");
    (service.job, service.platform.snp) = (Some(Ok(ENDED)), true);
    platform.look(&mut service);
    let fetched = [SNP_JOB, INIT_JOB].map(|job| FirmwareCall::JobResult(JobResult { job }));
    assert!(service.asked.starts_with(&fetched), "neither report stays there");
    assert_eq!(service.jobs(), [INIT], "which failed");
    (service.job, service.platform.sev) = (Some(Ok(ENDED)), PlatformState::Init);
    platform.look(&mut service);
    service.asked.clear();
    platform.look(&mut service);
    assert!(service.asked.is_empty(), "it is done");
}

#[test]
fn what_is_under_way_is_not_asked_for_again() {
    let mut service = service(Features::SEV | Features::SNP);
    (service.refuses, service.takes_snp) = (Some(Status::Exhausted), true);
    let mut platform = begun(&mut service);
    platform.look(&mut service);
    assert_eq!(service.jobs(), [SNP_INIT, INIT], "of which one is under way");
    (service.job, service.refuses, service.platform.snp) = (Some(Ok(ENDED)), None, true);
    platform.look(&mut service);
    assert_eq!(service.jobs(), [INIT]);
}

#[test]
fn who_never_answers_is_given_up_but_not_soon() {
    let mut service = service(Features::SEV);
    service.silent = true;
    let mut platform = begun(&mut service);
    (0..1000).for_each(|_| platform.look(&mut service));
    service.silent = false;
    platform.look(&mut service);
    assert_eq!(service.jobs(), [INIT], "it was restarted");
    (service.silent, service.job) = (true, Some(Ok(ENDED)));
    (0..10_000).for_each(|_| platform.look(&mut service));
    service.asked.clear();
    platform.look(&mut service);
    assert!(service.asked.is_empty());
}

#[test]
fn a_processor_that_has_no_snp_is_initialised_without() {
    let mut service = service(Features::SEV | Features::SNP);
    let mut platform = begun(&mut service);
    for _ in 0..100 {
        service.job = Some(Ok(ENDED));
        platform.look(&mut service);
    }
    let jobs = service.jobs();
    assert_eq!((jobs.first(), jobs.last()), (Some(&SNP_INIT), Some(&INIT)));
    assert!(jobs.len() < 100, "it isn't asked for ever");
}

#[test]
fn a_predecessors_platform_is_left_alone() {
    for sev in [PlatformState::Init, PlatformState::Working] {
        let mut service = service(Features::SEV | Features::SNP);
        service.platform.sev = sev;
        begun(&mut service).look(&mut service);
        assert_eq!(service.jobs(), []);
    }
}

#[test]
fn a_service_that_died_is_asked_again() {
    let mut service = service(Features::SEV);
    service.refuses = Some(Status::Died);
    let mut platform = begun(&mut service);
    assert_eq!(service.later, 1, "there may be no bell");
    service.refuses = None;
    platform.look(&mut service);
    // It took the job and died: its successor knows of none.
    service.job = Some(Err(Status::NotFound));
    platform.look(&mut service);
    assert_eq!(service.jobs(), [INIT; 3]);
}

#[test]
fn a_guest_is_forgotten_once_the_processor_says_so() {
    let vm = VmId::new(1, 0);
    let end = FirmwareCall::Decommission(Decommission { vm });
    let mut service = service(Features::empty());
    let mut platform = begun(&mut service);
    assert!(!platform.has_forgotten(vm, &mut service));
    assert!(!platform.has_forgotten(vm, &mut service), "it is under way");
    assert_eq!(service.jobs(), [end]);
    // A vCPU was still running.
    service.job = Some(Ok(JobReport { status: Status::Busy, cause: Cause::Kernel, ..ENDED }));
    assert!(!platform.has_forgotten(vm, &mut service));
    assert!(!platform.has_forgotten(vm, &mut service));
    assert_eq!(service.jobs(), [end]);
    service.job = Some(Ok(ENDED));
    assert!(platform.has_forgotten(vm, &mut service));
    service.asked.clear();
    assert!(platform.has_forgotten(vm, &mut service) && service.asked.is_empty(), "it is known");
    platform.gone(vm);
    assert!(!platform.has_forgotten(vm, &mut service), "another one, or nobody");
}

#[test]
fn a_processor_that_will_not_forget_keeps_no_vm() {
    let vm = VmId::new(1, 0);
    let mut service = service(Features::empty());
    let mut platform = begun(&mut service);
    assert!(!platform.has_forgotten(vm, &mut service));
    service.job = Some(Ok(JobReport { status: Status::State, cause: Cause::Processor, ..ENDED }));
    assert!(platform.has_forgotten(vm, &mut service), "its ASID is lost, its tables aren't");
    // One that is dead.
    let other = VmId::new(2, 0);
    service.refuses = Some(Status::Unsupported);
    assert!(platform.has_forgotten(other, &mut service));
    // One that has no room, or isn't there, may have later.
    for refuses in [Status::Exhausted, Status::Dead, Status::Died] {
        service.refuses = Some(refuses);
        assert!(!platform.has_forgotten(VmId::new(3, 0), &mut service));
    }
}
