//! The launch of an encrypted guest: what sev-firmware is asked for, one job after the other.
//!
//! All memory turns private first, which flushes its plain lines; what was loaded is then measured and encrypted
//! (55766, "Launch": LAUNCH_START, LAUNCH_UPDATE_DATA, LAUNCH_MEASURE, LAUNCH_FINISH).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa, PAGE_SIZE, VmId};
use caisson_proto::firmware::{
    JobId, JobReport, JobState, LaunchFinish, LaunchMeasure, LaunchStart, LaunchUpdate, Queued, RegisterRegion,
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
    /// The guest can run; its measurement with the nonce.
    Done([u8; MEASUREMENT]),
}

/// A launch.
#[derive(Debug)]
pub struct Launch {
    policy: u32,
    /// What is to be done; the first is under way if there is a job.
    steps: VecDeque<Step>,
    job: Option<JobId>,
    measurement: [u8; MEASUREMENT],
}

impl Launch {
    /// A launch with `ranges` of memory, of which `loaded` is measured: addresses and bytes.
    pub fn new(ranges: Vec<(u64, u64)>, loaded: Vec<(u64, u64)>, policy: u32) -> Self {
        let registers = ranges.into_iter().map(|(start, bytes)| Step::Register { start, bytes });
        let updates = loaded.into_iter().map(|(start, bytes)| Step::Update { start, bytes });
        let end = [Step::Measure, Step::Finish];
        let steps = registers.chain([Step::Start]).chain(updates).chain(end).collect();
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
        Ok(Progress::Done(self.measurement))
    }
}

fn ask(step: Step, vm: VmId, policy: u32, firmware: &mut impl Firmware) -> Result<JobId, Status> {
    match step {
        Step::Register { start, bytes } => {
            let (gfn, pages) = (Gfn(start / PAGE_SIZE), bytes / PAGE_SIZE);
            firmware.ask(&RegisterRegion { vm, gfn, pages, known: false })
        }
        Step::Start => firmware.ask(&LaunchStart { vm, policy, owner: false }),
        Step::Update { start, bytes } => firmware.ask(&LaunchUpdate { vm, gpa: Gpa(start), bytes }),
        Step::Measure => firmware.ask(&LaunchMeasure { vm }),
        Step::Finish => firmware.ask(&LaunchFinish { vm }),
    }
}
