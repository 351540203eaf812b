//! The launch of an encrypted guest: what sev-firmware is asked for, one job after the other.
//!
//! All memory turns private first, which flushes its plain lines; what was loaded is then measured and encrypted
//! (55766, "Launch": LAUNCH_START, LAUNCH_UPDATE_DATA, LAUNCH_MEASURE, LAUNCH_FINISH). With SEV-SNP the guest is made
//! before, since the RMP names its ASID, and whole pages are measured, from the lowest to the highest (56860 chapter 8:
//! SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH); what was measured only the guest can ask for.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa, PAGE_SIZE, VmId};
use caisson_proto::firmware::{
    JobId, JobReport, JobState, LaunchFinish, LaunchMeasure, LaunchStart, LaunchUpdate, Queued, RegisterRegion,
    SnpFinish, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType,
};
use caisson_proto::wire::Request;

/// Bytes of a measurement with its nonce.
pub const MEASUREMENT: usize = 48;

/// sev-firmware.
pub trait Firmware {
    /// Asks for a job.
    ///
    /// # Errors
    /// What it refused it for.
    fn ask<R: Request<Reply = Queued>>(&mut self, request: &R) -> Result<JobId, Status>;
    /// How a job stands; its data, if it gave any, at the beginning of `data`.
    ///
    /// # Errors
    /// What was refused.
    fn result(&mut self, job: JobId, data: &mut [u8; MEASUREMENT]) -> Result<JobReport, Status>;
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(target_os = "none", derive(defmt::Format))]
pub enum Step {
    /// Memory turns private.
    Register {
        /// Its first byte.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// The processor makes a guest, in an ASID.
    Start,
    /// Memory is measured and encrypted.
    Update {
        /// Its first byte.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// The measurement is asked for.
    Measure,
    /// Nothing can be added any more.
    Finish,
}

/// Why a launch came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The step.
    pub step: Step,
    /// What was answered.
    pub status: Status,
    /// The processor's command and its status, where it was asked.
    pub firmware: (u16, u16),
}

/// How far a launch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// sev-firmware will ring.
    Waits,
    /// The guest can run; its measurement with the nonce, if the host is told.
    Done(Option<[u8; MEASUREMENT]>),
}

/// What kind of guest is launched, and its owner's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// SEV, or SEV-ES if the policy says so (55766 chapter 3).
    Sev(u32),
    /// SEV-SNP (56860 section 4.3).
    Snp(u64),
}

/// A launch.
#[derive(Debug)]
pub struct Launch {
    policy: Policy,
    /// What is to be done; the first is under way if there is a job.
    steps: VecDeque<Step>,
    job: Option<JobId>,
    measurement: [u8; MEASUREMENT],
}

impl Launch {
    /// A launch with `ranges` of memory, of which `loaded` is measured: addresses and bytes, in rising order, each at most
    /// what a job takes; with SEV-SNP in whole pages.
    pub fn new(ranges: Vec<(u64, u64)>, loaded: Vec<(u64, u64)>, policy: Policy) -> Self {
        let registers = ranges.into_iter().map(|(start, bytes)| Step::Register { start, bytes });
        let updates = loaded.into_iter().map(|(start, bytes)| Step::Update { start, bytes });
        let steps = match policy {
            Policy::Sev(_) => {
                registers.chain([Step::Start]).chain(updates).chain([Step::Measure, Step::Finish]).collect()
            }
            Policy::Snp(_) => [Step::Start].into_iter().chain(registers).chain(updates).chain([Step::Finish]).collect(),
        };
        Self { policy, steps, job: None, measurement: [0; MEASUREMENT] }
    }

    /// Goes on as far as it can: at the beginning, and whenever sev-firmware rang.
    ///
    /// # Errors
    /// The step that failed. The launch is over.
    pub fn go_on(&mut self, vm: VmId, firmware: &mut impl Firmware) -> Result<Progress, Failed> {
        while let Some(&step) = self.steps.front() {
            let fail = |status| Failed { step, status, firmware: (0, 0) };
            let Some(job) = self.job else {
                self.job = Some(ask(step, vm, self.policy, firmware).map_err(fail)?);
                continue;
            };
            let report = firmware.result(job, &mut self.measurement).map_err(fail)?;
            if report.state != JobState::Ended {
                return Ok(Progress::Waits);
            }
            if report.status != Status::Ok {
                return Err(Failed { firmware: (report.command, report.firmware), ..fail(report.status) });
            }
            self.job = None;
            self.steps.pop_front();
        }
        let told = matches!(self.policy, Policy::Sev(_));
        Ok(Progress::Done(told.then_some(self.measurement)))
    }
}

fn ask(step: Step, vm: VmId, policy: Policy, firmware: &mut impl Firmware) -> Result<JobId, Status> {
    match (step, policy) {
        (Step::Register { start, bytes }, _) => {
            let (gfn, pages) = (Gfn(start / PAGE_SIZE), bytes / PAGE_SIZE);
            firmware.ask(&RegisterRegion { vm, gfn, pages, known: false })
        }
        (Step::Start, Policy::Sev(policy)) => firmware.ask(&LaunchStart { vm, policy, owner: false }),
        (Step::Start, Policy::Snp(policy)) => {
            firmware.ask(&SnpLaunchStart { vm, policy, workarounds_low: 0, workarounds_high: 0 })
        }
        (Step::Update { start, bytes }, Policy::Sev(_)) => firmware.ask(&LaunchUpdate { vm, gpa: Gpa(start), bytes }),
        (Step::Update { start, bytes }, Policy::Snp(_)) => {
            let (gfn, pages, page_type) = (Gfn(start / PAGE_SIZE), bytes / PAGE_SIZE, SnpPageType::Normal);
            firmware.ask(&SnpLaunchUpdate { vm, gfn, pages, page_type, permissions: 0 })
        }
        (Step::Measure, _) => firmware.ask(&LaunchMeasure { vm }),
        (Step::Finish, Policy::Sev(_)) => firmware.ask(&LaunchFinish { vm }),
        (Step::Finish, Policy::Snp(_)) => {
            let flags = SnpFinish::empty();
            firmware.ask(&SnpLaunchFinish { vm, flags, host_0: 0, host_1: 0, host_2: 0, host_3: 0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_snp_guest_is_there_before_its_memory_turns() {
        let launch = |policy| Launch::new(Vec::from([(0, 0x20_0000)]), Vec::from([(0x1000, 0x1000)]), policy).steps;
        let register = Step::Register { start: 0, bytes: 0x20_0000 };
        let update = Step::Update { start: 0x1000, bytes: 0x1000 };
        assert_eq!(launch(Policy::Snp(0)), [Step::Start, register, update, Step::Finish]);
        assert_eq!(launch(Policy::Sev(0)), [register, Step::Start, update, Step::Measure, Step::Finish]);
    }
}
