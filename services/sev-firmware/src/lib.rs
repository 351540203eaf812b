//! sev-firmware: speaks for the secure processor, and decides when ASIDs are recycled.
//!
//! The processor takes one command at a time and time for each, and nothing waits inside a call. So what a client wants is a
//! *job*: it gets a number, and its bell when the job has ended. A job is a few steps; the next one begins when the
//! kernel says that the last one happened.
//!
//! Which ASID is whose and what it owes is in the kernel's table, and how far a guest is the processor knows. What is kept
//! here is a copy of that, which a successor can make anew ([`Account`]). The kernel fills in handles, contexts, ASIDs and
//! addresses; none of them is known here.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

mod account;
mod area;
mod asids;
mod check;
mod compose;
mod effects;
mod engine;
mod guests;
mod jobs;
mod plan;
mod regions;
mod shape;
mod status;
mod steps;
mod survey;

use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::{CpuId, PAGE_SIZE, ServiceId, Tsc, VmId};
use caisson_proto::firmware::{
    Cause, FirmwareCall, JobId, JobReport, JobState, Life, Platform, Queued, SevSupport, UnregisterRegion,
};
use caisson_proto::kernel::{Features, Machine};
use caisson_proto::wire::{Done, Reply, Request, Words};
use heapless::Vec;

pub use account::Account;
pub use area::Lent;
pub use asids::{Classes, Leaked};
pub use guests::{Guest, Guests, Phase};
pub use jobs::{JOBS, KEEP_MS, PER_CLIENT, PER_PLATFORM, SLOTS};
pub use regions::{PER_VM, Region, Regions};

use area::Area;
use engine::Engine;
use jobs::Jobs;
use regions::Region as RegionOf;

/// How long a command may take, in milliseconds; after that the processor is dead. Initialising a large RMP takes longest.
pub const COMMAND_MS: u64 = 60_000;
/// How long a WBINVD on all CPUs may take, in milliseconds.
pub const WRITE_BACK_MS: u64 = 5_000;

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Every CPU completed a WBINVD.
    WroteBack,
    /// This CPU didn't complete one in time.
    Late(CpuId),
    /// The processor answered.
    Answered {
        /// The command.
        command: u16,
        /// The VM that it was for, if it was for one.
        vm: VmId,
        /// Its status.
        status: u16,
    },
    /// The processor told its interface's version, its build, and its state (55766 section 5.1.2).
    Platform {
        /// Major number.
        major: u8,
        /// Minor number.
        minor: u8,
        /// The build.
        build: u8,
        /// As it told it.
        state: u8,
    },
    /// This ASID is never used again.
    LeakedAsid(u32),
    /// A page didn't come back.
    LeakedPage,
    /// The processor is dead: this command wasn't answered.
    Dead {
        /// The command; 0 for a predecessor's.
        command: u16,
    },
}

/// The kernel, and the neighbours that sev-firmware rings.
pub trait Kernel {
    /// Asks for a kernel operation.
    ///
    /// # Errors
    /// What the kernel refused it for.
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status>;
    /// The same, lending the first pages of these for reading and writing.
    ///
    /// # Errors
    /// What the kernel refused it for.
    fn lend<R: Request>(&mut self, request: &R, pages: &mut Lent, count: usize) -> Result<R::Reply, Status>;
    /// Rings a client: one of its jobs has ended.
    fn bell(&mut self, client: ServiceId);
    /// Rings this service's own doorbell: there is more to do. False if that isn't possible.
    fn again(&mut self) -> bool;
    /// Writes into the log.
    fn note(&mut self, note: Note);
}

/// Pages that a client lent with a request.
pub trait Pages {
    /// How many.
    fn count(&self) -> u64;
    /// Whether they can be written.
    fn writable(&self) -> bool;
    /// Copies out of them. False if they end before.
    fn read(&self, offset: usize, into: &mut [u8]) -> bool;
    /// Copies into them. False if they end before.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> bool;
}

/// What nothing was reported of yet.
pub(crate) const FRESH: JobReport = JobReport {
    state: JobState::Waiting,
    status: Status::Ok,
    cause: Cause::Nobody,
    command: 0,
    firmware: 0,
    bytes: 0,
    done: 0,
};

/// The service's state.
#[derive(Debug)]
pub struct Firmware {
    support: SevSupport,
    classes: Classes,
    /// Services that speak for the platform and for every VM, by slot.
    platform: Vec<u16, 4>,
    /// Ticks a millisecond.
    tsc_khz: u64,
    account: Account,
    jobs: Jobs,
    engine: Engine,
    area: Area,
    flushes: u64,
}

impl Firmware {
    /// Knows nothing yet.
    pub const fn new() -> Self {
        Self {
            support: SevSupport::None,
            classes: Classes::of(&NO_MACHINE),
            platform: Vec::new(),
            tsc_khz: 0,
            account: Account::new(),
            jobs: Jobs::new(),
            engine: Engine::new(),
            area: Area::new(),
            flushes: 0,
        }
    }

    /// Looks what a predecessor left, on this machine. The services in the slots `platform` speak for the platform.
    pub fn start(&mut self, machine: &Machine, platform: &[u16], now: Tsc, kernel: &mut impl Kernel) {
        self.classes = Classes::of(machine);
        self.platform = platform.iter().copied().take(4).collect();
        self.tsc_khz = machine.tsc_khz;
        self.jobs.number_from(now.0 as u32);
        if machine.features.contains(Features::SEV) {
            self.support = SevSupport::Present;
            self.begin(now, kernel);
        }
    }

    /// Answers one request.
    pub fn handle(
        &mut self, sender: ServiceId, words: &Words, lease: Option<&mut dyn Pages>, now: Tsc, kernel: &mut impl Kernel,
    ) -> (Status, Words) {
        match FirmwareCall::decode(words) {
            Ok(FirmwareCall::PlatformStatus(_)) => answer(Ok(self.platform())),
            Ok(FirmwareCall::JobResult(request)) => answer(self.result(sender, request.job, lease)),
            Ok(FirmwareCall::UnregisterRegion(request)) => answer(self.unregister(sender, request, kernel)),
            Ok(call) => answer(self.queue(sender, call, lease, now, kernel).map(|job| Queued { job })),
            Err(_) => (Status::Malformed, [0; 8]),
        }
    }

    /// Doorbells rang.
    pub fn doorbell(&mut self, bits: u64, now: Tsc, kernel: &mut impl Kernel) {
        if bits & (doorbell::INTERRUPT | doorbell::TICKET | doorbell::TIMER) != 0 {
            self.poll(now, kernel);
        }
        self.run(now, kernel);
    }

    /// What the machine offers, and whether the processor can be asked.
    pub const fn standing(&self) -> (SevSupport, Life) {
        (self.support, self.engine.life)
    }

    /// What it believes.
    pub const fn account(&self) -> &Account {
        &self.account
    }

    fn platform(&self) -> Platform {
        Platform {
            support: self.support,
            life: self.engine.life,
            sev: self.account.sev,
            snp: self.account.snp,
            jobs: self.jobs.open(),
            leaked_asids: self.account.leaked.count(),
            leaked_pages: self.account.leaked_pages,
            flushes: self.flushes,
        }
    }

    fn able(&self) -> Result<(), Status> {
        let able = self.support == SevSupport::Present && self.engine.life != Life::Dead;
        if able { Ok(()) } else { Err(Status::Unsupported) }
    }

    fn speaks_for_platform(&self, sender: ServiceId) -> bool {
        self.platform.iter().any(|slot| usize::from(*slot) == sender.index())
    }

    fn queue(
        &mut self, sender: ServiceId, call: FirmwareCall, lease: Option<&mut dyn Pages>, now: Tsc,
        kernel: &mut impl Kernel,
    ) -> Result<JobId, Status> {
        self.able()?;
        let platform = self.speaks_for_platform(sender);
        let kind = check::check(&call, sender, platform, &self.account.guests, kernel)?;
        let shape = shape::of(&call, kind);
        let lent = lease.as_ref().map_or(0, |pages| pages.count().saturating_mul(PAGE_SIZE));
        if shape.takes.iter().any(|part| part.bytes > 0 && (part.at + part.bytes) as u64 > lent) {
            return Err(Status::BadLease);
        }
        let keep = KEEP_MS.saturating_mul(self.tsc_khz);
        let slot = self.jobs.room(sender, platform, shape.any(), now, keep)?;
        let data = self.jobs.data_mut(slot);
        data.fill(0);
        for part in shape.takes.iter().filter(|part| part.bytes > 0) {
            let pages = lease.as_ref().ok_or(Status::BadLease)?;
            let into = data.get_mut(part.at..part.at + part.bytes).ok_or(Status::Range)?;
            if !pages.read(part.at, into) {
                return Err(Status::BadLease);
            }
        }
        let job = self.jobs.add(sender, call, kind, slot, shape.gives);
        self.run(now, kernel);
        Ok(job)
    }

    fn result(&mut self, sender: ServiceId, id: JobId, lease: Option<&mut dyn Pages>) -> Result<JobReport, Status> {
        let job = *self.jobs.get(sender, id).ok_or(Status::NotFound)?;
        if job.report.state != JobState::Ended {
            return Ok(job.report);
        }
        let bytes = job.report.bytes as usize;
        if bytes > 0 {
            let pages = lease.filter(|pages| pages.writable()).ok_or(Status::BadLease)?;
            if pages.count().saturating_mul(PAGE_SIZE) < bytes as u64 {
                return Err(Status::Range);
            }
            let data = self.jobs.data(job.slot).get(job.gives.at..).unwrap_or_default();
            if !pages.write(0, data.get(..bytes).unwrap_or_default()) {
                return Err(Status::BadLease);
            }
        }
        self.jobs.forget(id);
        Ok(job.report)
    }

    fn unregister(
        &mut self, sender: ServiceId, request: UnregisterRegion, kernel: &mut impl Kernel,
    ) -> Result<Done, Status> {
        if self.support == SevSupport::None {
            return Err(Status::Unsupported);
        }
        let call = FirmwareCall::UnregisterRegion(request);
        check::check(&call, sender, self.speaks_for_platform(sender), &self.account.guests, kernel)?;
        self.account.regions.remove(RegionOf { vm: request.vm, gfn: request.gfn, pages: request.pages })?;
        Ok(Done {})
    }
}

impl Default for Firmware {
    fn default() -> Self {
        Self::new()
    }
}

const NO_MACHINE: Machine =
    Machine { cpus: 0, tsc_khz: 0, features: Features::empty(), frames: 0, asids: 0, services: 0, sev_asids: 0 };

fn answer<R: Reply>(result: Result<R, Status>) -> (Status, Words) {
    match result {
        Ok(reply) => (Status::Ok, reply.encode()),
        Err(status) => (status, [0; 8]),
    }
}
