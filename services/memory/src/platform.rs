//! The secure processor as memory sees it: it has it initialised, and no frame of an encrypted VM's tables goes before
//! its guest is forgotten.
//!
//! sev-firmware does what takes time as a job. One that died with a job that it had taken is asked again; so is one that had no
//! room.

use caisson_proto::abi::{MAX_VMS, Status};
use caisson_proto::addr::VmId;
use caisson_proto::firmware::{
    Cause, Decommission, Init, JobId, JobReport, JobResult, JobState, Life, PlatformState, PlatformStatus, SevSupport,
    SnpInit,
};
use caisson_proto::kernel::{Features, MachineInfo};
use heapless::Vec;

use crate::Kernel;

/// How often initialisation is asked for, of SNP and of the whole.
const TRIES: u32 = 50;
/// How often sev-firmware may not answer: it may be about to be restarted.
const UNANSWERED: u32 = 5000;

/// What memory remembers of it.
#[derive(Debug)]
pub(crate) struct Platform {
    /// Initialisations that are under way: SNP's and the whole.
    jobs: Vec<JobId, 2>,
    initialised: bool,
    snp: bool,
    tries: u32,
    unanswered: u32,
    /// Guests whose end was asked for; no job where that is done.
    ends: Vec<(VmId, Option<JobId>), MAX_VMS>,
}

impl Platform {
    pub(crate) const fn new() -> Self {
        Self { jobs: Vec::new(), initialised: false, snp: false, tries: 0, unanswered: 0, ends: Vec::new() }
    }

    /// Asks what machine this is, and begins.
    pub(crate) fn begin(&mut self, kernel: &mut impl Kernel) {
        let features = kernel.ask(&MachineInfo {}).map_or(Features::empty(), |machine| machine.features);
        self.initialised = !features.contains(Features::SEV);
        self.snp = features.contains(Features::SNP);
        self.look(kernel);
    }

    /// Goes on with the initialisation: SNP's first, since afterwards it is too late.
    pub(crate) fn look(&mut self, kernel: &mut impl Kernel) {
        self.jobs.retain(|job| is_under_way(&result(*job, kernel)));
        if self.initialised || !self.jobs.is_empty() {
            return;
        }
        if self.tries >= TRIES || self.unanswered >= UNANSWERED {
            // A processor that won't, or nobody to ask it: encrypted VMs aren't launched then.
            self.initialised = true;
            return;
        }
        let Ok(platform) = kernel.firmware(&PlatformStatus {}) else {
            self.unanswered += 1;
            return kernel.later();
        };
        self.tries += 1;
        let young = matches!(platform.sev, PlatformState::Uninit | PlatformState::Unknown);
        if !young || platform.support == SevSupport::None || platform.life == Life::Dead {
            self.initialised = true;
            return;
        }
        // One right after the other, so that no launch gets in between.
        let snp = self.snp && !platform.snp && self.tries < TRIES / 2;
        let first = if snp { kernel.firmware(&SnpInit { rmp: true }).map(Some) } else { Ok(None) };
        let (frame, pages) = kernel.donated();
        let then = first.and_then(|snp| {
            self.jobs.extend(snp.map(|queued| queued.job));
            kernel.firmware(&Init { frame, pages })
        });
        match then {
            Ok(queued) => self.jobs.extend([queued.job]),
            Err(_) => kernel.later(),
        }
    }

    /// Whether the processor has forgotten the guest of a dying VM, or never will. Asks for it if need be.
    pub(crate) fn has_forgotten(&mut self, vm: VmId, kernel: &mut impl Kernel) -> bool {
        let asked = self.ends.iter().position(|(of, _)| *of == vm);
        let end = match asked.and_then(|at| self.ends.get(at)) {
            Some((_, None)) => return true,
            Some((_, Some(job))) => match result(*job, kernel) {
                answer if is_under_way(&answer) => return false,
                // What the kernel refused is asked again: a vCPU was still running.
                Ok(report) if report.status == Status::Ok || report.cause == Cause::Processor => Some(None),
                _ => None,
            },
            None => match kernel.firmware(&Decommission { vm }) {
                Ok(queued) => Some(Some(queued.job)),
                // There is none, or none that answers.
                Err(Status::Unsupported) => Some(None),
                Err(_) => None,
            },
        };
        if let Some(at) = asked {
            self.ends.swap_remove(at);
        }
        if let Some(end) = end {
            // There is room for as many as there are VMs.
            let _ = self.ends.push((vm, end));
        }
        end == Some(None)
    }

    /// A VM is gone.
    pub(crate) fn gone(&mut self, vm: VmId) {
        self.ends.retain(|(of, _)| *of != vm);
    }
}

fn result(job: JobId, kernel: &mut impl Kernel) -> Result<JobReport, Status> {
    kernel.firmware(&JobResult { job })
}

fn is_under_way(answer: &Result<JobReport, Status>) -> bool {
    answer.as_ref().is_ok_and(|report| report.state != JobState::Ended)
}
