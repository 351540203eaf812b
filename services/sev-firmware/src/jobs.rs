//! The queue: what clients want done, in the order in which they came, and what became of it.
//!
//! A client has a bounded share, so that none keeps the others out, and those who speak for the platform have theirs kept free.
//! What has ended is kept until it is asked for, and for [`KEEP_MS`] in any case, unless its client wants more than its share.

use caisson_proto::abi::Status;
use caisson_proto::addr::{ServiceId, Tsc};
use caisson_proto::firmware::{FirmwareCall, JobId, JobReport, JobState};
use caisson_proto::kernel::VmKind;
use heapless::Vec;

use crate::area::DATA;
use crate::shape::Range;

/// Jobs at a time, those counted that have ended and weren't asked for.
pub const JOBS: usize = 48;
/// The same of one client.
pub const PER_CLIENT: usize = 4;
/// The same of one that speaks for the platform. So many are kept free for those.
pub const PER_PLATFORM: usize = 16;
/// Jobs at a time that take or give data. A client has one.
pub const SLOTS: usize = 6;
/// What has ended is kept so long at least.
pub const KEEP_MS: u64 = 10_000;

/// A job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub id: JobId,
    pub client: ServiceId,
    pub call: FirmwareCall,
    /// The kind of its VM.
    pub kind: VmKind,
    pub report: JobReport,
    /// When it ended.
    pub ended: Tsc,
    /// Which part of the data is its.
    pub slot: Option<usize>,
    /// What of that it gives.
    pub gives: Range,
}

/// All jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    /// The oldest first.
    table: Vec<Job, JOBS>,
    data: [[u8; DATA]; SLOTS],
    last: u32,
}

impl Jobs {
    pub const fn new() -> Self {
        Self { table: Vec::new(), data: [[0; DATA]; SLOTS], last: 0 }
    }

    /// Numbers begin here: a predecessor's, which a client may still have, aren't used again soon.
    pub fn number_from(&mut self, start: u32) {
        self.last = start;
    }

    /// Whether a client can have another job; where its data would lie. `Exhausted` if not.
    pub fn room(
        &mut self, client: ServiceId, platform: bool, with_data: bool, now: Tsc, keep: u64,
    ) -> Result<Option<usize>, Status> {
        // Results of whoever was in the client's slot before it.
        self.table.retain(|job| job.report.state != JobState::Ended || job.client == client || !same_slot(job, client));
        let own = |job: &Job| same_slot(job, client);
        if with_data && self.table.iter().any(|job| own(job) && job.slot.is_some()) {
            return Err(Status::Exhausted);
        }
        let ended = |job: &Job| job.report.state == JobState::Ended;
        let old = |job: &Job| ended(job) && now.0.saturating_sub(job.ended.0) >= keep;
        let (share, all) = if platform { (PER_PLATFORM, JOBS) } else { (PER_CLIENT, JOBS - PER_PLATFORM) };
        let mut evicted = Vec::<JobId, 3>::new();
        if self.table.iter().filter(|job| own(job)).count() >= share {
            self.pick(&mut evicted, |job| own(job) && job.slot.is_none() && ended(job))?;
        }
        if self.table.len() - evicted.len() >= all {
            self.pick(&mut evicted, old)?;
        }
        let free = |evicted: &[JobId]| {
            let holds = |job: &&Job, slot| job.slot == Some(slot) && !evicted.contains(&job.id);
            (0..SLOTS).find(|slot| !self.table.iter().any(|job| holds(&job, *slot)))
        };
        let slot = match free(&evicted).filter(|_| with_data) {
            None if with_data => {
                self.pick(&mut evicted, |job| job.slot.is_some() && old(job))?;
                free(&evicted)
            }
            slot => slot,
        };
        self.table.retain(|job| !evicted.contains(&job.id));
        Ok(slot)
    }

    /// Chooses the oldest of these to be forgotten. `Exhausted` if there is none.
    fn pick(&self, evicted: &mut Vec<JobId, 3>, which: impl Fn(&Job) -> bool) -> Result<(), Status> {
        let job = self.table.iter().find(|job| !evicted.contains(&job.id) && which(job)).ok_or(Status::Exhausted)?;
        evicted.push(job.id).map_err(|_| Status::Exhausted)
    }

    /// Queues a job; there was [`Self::room`].
    pub fn add(
        &mut self, client: ServiceId, call: FirmwareCall, kind: VmKind, slot: Option<usize>, gives: Range,
    ) -> JobId {
        self.last = self.last.wrapping_add(1).max(1);
        let id = JobId(self.last);
        let report = JobReport { state: JobState::Waiting, ..crate::FRESH };
        let _ = self.table.push(Job { id, client, call, kind, report, ended: Tsc(0), slot, gives });
        id
    }

    /// The job that comes next; it is running from now on.
    pub fn next(&mut self) -> Option<Job> {
        let job = self.table.iter_mut().find(|job| job.report.state == JobState::Waiting)?;
        job.report.state = JobState::Running;
        Some(*job)
    }

    /// A job has ended. Whom to tell.
    pub fn end(&mut self, id: JobId, report: JobReport, now: Tsc) -> Option<ServiceId> {
        let job = self.table.iter_mut().find(|job| job.id == id)?;
        job.report = JobReport { state: JobState::Ended, ..report };
        job.ended = now;
        Some(job.client)
    }

    /// A client's job.
    pub fn get(&self, client: ServiceId, id: JobId) -> Option<&Job> {
        self.table.iter().find(|job| job.id == id && job.client == client)
    }

    /// Its result was told.
    pub fn forget(&mut self, id: JobId) {
        self.table.retain(|job| job.id != id);
    }

    /// Those that haven't ended.
    pub fn open(&self) -> u32 {
        self.table.iter().filter(|job| job.report.state != JobState::Ended).count() as u32
    }

    /// A job's data.
    pub fn data(&self, slot: Option<usize>) -> &[u8] {
        slot.and_then(|slot| self.data.get(slot)).map_or(&[], |data| data)
    }

    /// The same, to fill it.
    pub fn data_mut(&mut self, slot: Option<usize>) -> &mut [u8] {
        slot.and_then(|slot| self.data.get_mut(slot)).map_or(&mut [], |data| data)
    }
}

fn same_slot(job: &Job, client: ServiceId) -> bool {
    job.client.index() == client.index()
}
