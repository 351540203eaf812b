//! How the model of a vmm launches an encrypted guest, and turns pages of it private later on.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{CpuId, Gfn, Gpa, PAGE_SIZE, VPage, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::VmKind;
use caisson_proto::memory::VmMake;
use caisson_proto::wire::Request;

use super::doze;
use super::vmm::TRIES;
use crate::hardware::LENDABLE;
use crate::history::What;
use crate::service::Sys;

/// A SEV-ES guest's policy.
const ES_POLICY: u32 = 1 << 2;
/// A SEV-SNP guest's: SMT is allowed, and a bit that must be one.
const SNP_POLICY: u64 = 3 << 16;
/// Looks in a row that found something to wait for: an ASID, or the service.
const PATIENCE: u32 = 100;

/// What is asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Register,
    Update,
    Vmsa,
    Measure,
    Finish,
    Done,
}

impl Stage {
    fn next(self, kind: VmKind) -> Self {
        match self {
            Self::Start => Self::Register,
            Self::Register => Self::Update,
            Self::Update if kind == VmKind::SevEs => Self::Vmsa,
            Self::Update if kind == VmKind::SevSnp => Self::Finish,
            Self::Update | Self::Vmsa => Self::Measure,
            Self::Measure => Self::Finish,
            Self::Finish | Self::Done => Self::Done,
        }
    }
}

/// How a launch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Something is under way.
    Waits,
    /// The guest may run.
    Launched,
    /// It won't.
    Failed,
}

/// A launch.
#[derive(Debug)]
pub struct Launch {
    vm: VmId,
    kind: VmKind,
    /// Pages that are private from the beginning; the last is the save area of SEV-ES.
    pages: u64,
    stage: Stage,
    job: Option<JobId>,
    looks: u32,
    /// A region that is turning private while the guest runs.
    turning: Option<(JobId, Gfn, u64)>,
}

impl Launch {
    /// Of a VM of this kind, whose first pages are populated.
    pub fn new(vm: VmId, kind: VmKind, pages: u64) -> Self {
        let stage = if kind == VmKind::Plain { Stage::Done } else { Stage::Start };
        Self { vm, kind, pages, stage, job: None, looks: 0, turning: None }
    }

    fn ask<R: Request<Reply = Queued>>(&mut self, sys: &Sys<'_>, request: &R) -> Result<(), Status> {
        let queued = sys.call(sys.world.manifest.firmware, request)?;
        self.job = Some(queued.job);
        Ok(())
    }

    fn request(&mut self, sys: &Sys<'_>) -> Result<(), Status> {
        let (vm, gfn) = (self.vm, Gfn(0));
        let measured = self.pages - u64::from(self.kind == VmKind::SevEs);
        match self.stage {
            Stage::Start if self.kind == VmKind::SevSnp => {
                let start = SnpLaunchStart { vm, policy: SNP_POLICY, workarounds_low: 0, workarounds_high: 0 };
                self.ask(sys, &start)
            }
            Stage::Update if self.kind == VmKind::SevSnp => {
                let page_type = SnpPageType::Normal;
                self.ask(sys, &SnpLaunchUpdate { vm, gfn, pages: measured, page_type, permissions: 0 })
            }
            Stage::Finish if self.kind == VmKind::SevSnp => {
                let flags = SnpFinish::empty();
                self.ask(sys, &SnpLaunchFinish { vm, flags, host_0: 0, host_1: 0, host_2: 0, host_3: 0 })
            }
            Stage::Start => {
                let policy = if self.kind == VmKind::SevEs { ES_POLICY } else { 0 };
                self.ask(sys, &LaunchStart { vm, policy, owner: false })
            }
            Stage::Register => self.ask(sys, &RegisterRegion { vm, gfn, pages: self.pages, known: false }),
            Stage::Update => self.ask(sys, &LaunchUpdate { vm, gpa: Gpa(0), bytes: measured * PAGE_SIZE }),
            Stage::Vmsa => self.ask(sys, &LaunchVmsa { vm, gfn: Gfn(measured) }),
            Stage::Measure => self.ask(sys, &LaunchMeasure { vm }),
            Stage::Finish => self.ask(sys, &LaunchFinish { vm }),
            Stage::Done => Ok(()),
        }
    }

    /// Goes on. Asks the same again of a service that died; what it says to be over is over.
    pub fn look(&mut self, sys: &Sys<'_>) -> Standing {
        while self.stage != Stage::Done && !sys.stopped() {
            self.looks += 1;
            let patient = self.looks < PATIENCE;
            let outcome = match self.job {
                None => self.request(sys).err(),
                Some(job) => match result(sys, job) {
                    Ok(report) if report.state != JobState::Ended => return Standing::Waits,
                    Ok(report) => {
                        self.job = None;
                        if report.status == Status::Ok {
                            (self.stage, self.looks) = (self.stage.next(self.kind), 0);
                            continue;
                        }
                        Some(report.status)
                    }
                    Err(_) => {
                        self.job = None;
                        Some(Status::Died)
                    }
                },
            };
            match outcome {
                None => return Standing::Waits,
                // A predecessor of the service had come so far.
                Some(Status::State)
                    if self.stage != Stage::Start || sys.known(sys.world.manifest.firmware).generation() > 0 =>
                {
                    self.stage = self.stage.next(self.kind);
                }
                Some(Status::Dead | Status::Died | Status::Busy | Status::Exhausted) if patient => {
                    return Standing::Waits;
                }
                Some(status) => {
                    sys.world.note(0, What::Said("the launch fails", status as u64));
                    return Standing::Failed;
                }
            }
        }
        if self.stage == Stage::Done { Standing::Launched } else { Standing::Waits }
    }

    /// Turns shared pages of the running guest private, or sees what became of that.
    pub fn turn(&mut self, sys: &Sys<'_>, gfn: u64, pages: u64) {
        let firmware = sys.world.manifest.firmware;
        let vm = self.vm;
        let Some((job, gfn, pages)) = self.turning else {
            let request = RegisterRegion { vm, gfn: Gfn(gfn), pages, known: false };
            let queued = sys.call(firmware, &request).ok();
            self.turning = queued.map(|queued| (queued.job, Gfn(gfn), pages));
            return;
        };
        let report = result(sys, job);
        if report.is_ok_and(|report| report.state != JobState::Ended) {
            return;
        }
        self.turning = None;
        // The list of regions is short, and nobody here needs it.
        let done = report.map_or(0, |report| report.done);
        if done > 0 {
            let _ = sys.call(firmware, &UnregisterRegion { vm, gfn, pages: done.min(pages) });
        }
    }
}

fn result(sys: &Sys<'_>, job: JobId) -> Result<JobReport, Status> {
    let lease = Lease { page: VPage(LENDABLE.start), pages: 1, write: true };
    sys.call_lending(sys.world.manifest.firmware, &JobResult { job }, lease)
}

/// Makes the VM: its id and how many vCPUs it has.
pub fn make(sys: &Sys<'_>) -> Result<(VmId, u8), Status> {
    let world = sys.world;
    let kind = world.manifest.services.get(sys.slot).map_or(VmKind::Plain, |service| service.kind);
    let vcpus = 1 + world.rng.below(u64::from(world.config.vcpus)) as u8;
    // Elsewhere in each life, so that what is left of a former one would be seen.
    let first_cpu = CpuId(world.rng.below(world.config.cpus as u64) as u16);
    let pages = world.manifest.guest_pages;
    let make = VmMake { kind, vcpus, pages, promised: pages, first_cpu, lowest_cpu: CpuId(0) };
    let mut last = Status::Dead;
    for _ in 0..TRIES {
        let memory = sys.known(world.manifest.memory);
        match sys.call(world.manifest.memory, &make) {
            Ok(made) => return Ok((made.vm, vcpus)),
            // A VM of it that memory's predecessor made has to be gone.
            Err(Status::Dead | Status::Died | Status::Busy) if !sys.stopped() => {
                last = Status::Died;
                doze(sys, 200);
            }
            Err(status) => {
                let broken = memory.generation() == 0 && status == Status::Exhausted && last != Status::Died;
                world.check(!broken, || "memory can't promise what is there".into());
                return Err(status);
            }
        }
    }
    Err(last)
}
