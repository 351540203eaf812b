//! memory: owns all frames that the kernel doesn't use, and so makes VMs.
//!
//! The kernel's tables are the truth; what memory keeps is a cache of which frames are free ([`pool`]) and what it
//! promised to each VM. Between two messages no frame is on its way: each was given to the kernel or is back in
//! the pool. So a restarted memory enumerates and goes on; all that is lost is promises, and a VM without one gets
//! what nobody else was promised.
//!
//! A dead VM's memory is taken back a bounded number of kernel operations at a time, with the bell rung for the
//! rest, so that calls get in between.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

mod balloon;
pub mod capabilities;
mod counts;
pub mod gmem;
pub mod keyed;
mod make;
pub mod need;
mod platform;
pub mod pool;
mod private;
mod promise;
mod reclaim;
mod shown;
pub mod slots;

use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{Frame, Gfn, ServiceId, VmId};
use caisson_proto::kernel::{FrameCount, FrameRuns, FrameState, MachineInfo, VmInfo, VmReport, VmState};
use caisson_proto::memory::{
    Capability, CapabilityReport, FramesOf, MemoryCall, MemoryReport, Need, NoticesOf, Promise, Reclaimed, Unpromise,
};
use caisson_proto::notifier::VmNotices;
use caisson_proto::wire::{Done, Reply, Request, Words};

use counts::Counts;
use gmem::Gmems;
use need::Shortage;
use platform::Platform;
use pool::Pool;
use promise::Promises;
pub use promise::overhead;
pub use shown::REGION_PAGES;
use slots::Slots;

/// Frames that are to be free although encrypted ones wait: 16 MiB, which guests need some time to fill.
pub const RESERVE: u64 = 4096;

/// Slots of all VMs. Fewer on the host, where many memories live beside each other, some of them on a stack.
pub const SLOTS: usize = if cfg!(target_os = "none") { slots::CAPACITY } else { 1024 };
/// Granules in the directory of each region.
const GRANULES: usize = if cfg!(target_os = "none") { slots::GRANULES } else { 64 };

/// Pieces of 2 MiB of which some is private, of all VMs: 32 GiB.
const BITMAPS: usize = if cfg!(target_os = "none") { 16_384 } else { 64 };
/// Slots with a gmem: 16 for each VM.
const BINDINGS: usize = if cfg!(target_os = "none") { 768 } else { 32 };

/// The kernel, and the neighbours that memory talks to.
pub trait Kernel {
    /// Asks for a kernel operation.
    ///
    /// # Errors
    /// What the kernel refused it for.
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status>;
    /// Posts to notifier. False if there is no room.
    fn post(&mut self, reclaimed: &Reclaimed) -> bool;
    /// The same, with pages of the caller's for the kernel to read.
    ///
    /// # Errors
    /// What the kernel refused it for.
    fn lend<R: Request>(&mut self, _: &R, _: Lease) -> Result<R::Reply, Status> {
        Err(Status::Unsupported)
    }
    /// Calls notifier: it lost count and should look at everything open.
    fn settle(&mut self);
    /// Calls notifier: so many frames are wanted soon.
    fn want(&mut self, frames: u64);
    /// Calls notifier: what it did for a VM.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if it doesn't answer.
    fn notices(&mut self, _: VmId) -> Result<VmNotices, Status> {
        Err(Status::Unsupported)
    }
    /// Calls sev-firmware.
    ///
    /// # Errors
    /// What it refused it for; [`Status::Unsupported`] where there is none.
    fn firmware<R: Request>(&mut self, _: &R) -> Result<R::Reply, Status> {
        Err(Status::Unsupported)
    }
    /// Frames that the secure processor was given for SEV-ES.
    fn donated(&self) -> (Frame, u64) {
        (Frame(0), 0)
    }
    /// Rings the supervisor: all frames of dead VMs are free.
    fn settled(&mut self);
    /// Rings this service's own doorbell: there is more to do. False if that isn't possible.
    fn again(&mut self) -> bool;
    /// Asks for a doorbell in a moment: others must do something first.
    fn later(&mut self);
    /// Rings a vmm: what is [needed](caisson_proto::memory::Need) has changed.
    fn tell_need(&mut self, _: ServiceId) {}
    /// Asks for a doorbell when a shortage has its next round.
    fn next_round(&mut self) {}
    /// Whether that round's time has come. If not, the doorbell is still to ring for it.
    fn round_is_due(&mut self) -> bool {
        true
    }
}

/// The service's state.
#[derive(Debug)]
pub struct Memory {
    pool: Pool,
    promises: Promises,
    platform: Platform,
    counts: Counts,
    slots: Slots<SLOTS, GRANULES>,
    gmems: Gmems<BITMAPS, BINDINGS>,
    shortage: Shortage,
    /// Where the enumeration of frames goes on; `None` if it is complete.
    scan: Option<Frame>,
    /// Frames have left a VM since the last enumeration.
    stale: bool,
    /// The supervisor waits for `SETTLED`.
    owes_settled: bool,
    cpus: u16,
}

impl Memory {
    /// Knows nothing yet.
    pub const fn new() -> Self {
        Self {
            pool: Pool::new(),
            promises: Promises::new(),
            platform: Platform::new(),
            counts: Counts::new(),
            slots: Slots::new(),
            gmems: Gmems::new(),
            shortage: Shortage::new(),
            scan: None,
            stale: false,
            owes_settled: false,
            cpus: 0,
        }
    }

    /// Enumerates everything, on a machine with so many CPUs.
    pub fn start(&mut self, cpus: u16, kernel: &mut impl Kernel) {
        self.cpus = cpus.max(1);
        // Asked first: frames of a batch that is paid during the enumeration may be missed by it.
        let open = reclaim::any_open(kernel);
        self.rescan(kernel);
        if open {
            self.stale = true;
            // Of batches that a predecessor opened, notifier may not have heard.
            kernel.settle();
        }
        // Events in which a predecessor died are over.
        let mut slot = 0;
        loop {
            let Some(report) = vms_from(slot, kernel).next() else { break };
            slot = report.next;
            reclaim::end_event(report.vm, Gfn(0), kernel);
        }
        self.platform.begin(kernel);
        if vms(kernel).next().is_some() {
            // A predecessor may have told of a shortage, and nobody that it is over.
            self.short(kernel);
        }
        self.reclaim(kernel);
    }

    /// Answers one request, with the pages that come with it.
    pub fn handle(
        &mut self, sender: ServiceId, words: &Words, lease: Option<Lease>, kernel: &mut impl Kernel,
    ) -> (Status, Words) {
        fn answer<R: Reply>(result: Result<R, Status>) -> (Status, Words) {
            match result {
                Ok(reply) => (Status::Ok, reply.encode()),
                Err(status) => (status, [0; 8]),
            }
        }
        match MemoryCall::decode(words) {
            Ok(MemoryCall::VmMake(request)) => answer(self.vm_make(sender, &request, kernel)),
            Ok(MemoryCall::Populate(request)) => answer(self.populate(sender, &request, kernel).map(|()| Done {})),
            Ok(MemoryCall::GiveBack(request)) => answer(self.give_back(sender, &request, kernel).map(|()| Done {})),
            Ok(MemoryCall::Promise(Promise { vm, pages })) => {
                answer(self.promise(sender, vm, pages, kernel).map(|()| Done {}))
            }
            Ok(MemoryCall::Unpromise(Unpromise { vm, pages })) => {
                answer(self.unpromise(sender, vm, pages, kernel).map(|()| Done {}))
            }
            Ok(MemoryCall::Need(Need { vm })) => answer(self.needed(sender, vm, kernel)),
            Ok(MemoryCall::Report(_)) => answer(self.report(kernel)),
            Ok(MemoryCall::FramesOf(FramesOf { vm })) => answer(self.vm_frames(sender, vm, kernel)),
            Ok(MemoryCall::NoticesOf(NoticesOf { vm })) => {
                answer(own(vm, sender, kernel).and_then(|_| kernel.notices(vm)))
            }
            Ok(MemoryCall::SlotSet(request)) => answer(self.slot_set(sender, &request, kernel)),
            Ok(MemoryCall::SlotInfo(request)) => answer(self.slot_info(sender, &request, kernel)),
            Ok(MemoryCall::Discard(request)) => answer(self.discard(sender, &request, kernel)),
            Ok(MemoryCall::Capability(Capability { number })) => {
                let features = kernel.ask(&MachineInfo {}).map(|machine| machine.features);
                answer(features.map(|features| CapabilityReport { value: capabilities::answer(number, features) }))
            }
            Ok(MemoryCall::GmemMake(request)) => answer(self.gmem_make(sender, &request, kernel)),
            Ok(MemoryCall::GmemDrop(request)) => answer(self.gmem_drop(sender, &request, kernel).map(|()| Done {})),
            Ok(MemoryCall::Attribute(request)) => answer(self.attribute(sender, &request, kernel).map(|()| Done {})),
            Ok(MemoryCall::Fill(request)) => answer(self.fill_private(sender, &request, lease, kernel)),
            Ok(MemoryCall::Punch(request)) => answer(self.punch(sender, &request, kernel)),
            Ok(MemoryCall::Poison(request)) => answer(self.poison(sender, &request, kernel).map(|()| Done {})),
            Err(_) => (Status::Malformed, [0; 8]),
        }
    }

    /// Doorbells rang.
    pub fn doorbell(&mut self, bits: u64, kernel: &mut impl Kernel) {
        if bits & doorbell::VM_GONE != 0 {
            self.owes_settled = true;
        }
        self.platform.look(kernel);
        if bits & doorbell::TIMER != 0 {
            self.round(kernel);
        }
        let owed = self.owes_settled;
        self.reclaim(kernel);
        if owed && !self.owes_settled {
            self.freed(kernel);
        }
    }

    fn report(&self, kernel: &mut impl Kernel) -> Result<MemoryReport, Status> {
        let counts = kernel.ask(&FrameCount {})?;
        Ok(MemoryReport {
            free: counts.free,
            owned: counts.owned,
            quarantined: counts.quarantined,
            promised: self.promises.outstanding(kernel),
            leaked: counts.leaked,
        })
    }

    /// Enumerates all frames anew.
    fn rescan(&mut self, kernel: &mut impl Kernel) {
        self.begin_scan();
        while self.scan.is_some() {
            self.scan_step(kernel);
        }
    }

    fn begin_scan(&mut self) {
        self.pool.clear();
        self.stale = false;
        self.scan = Some(Frame(0));
    }

    /// Takes in one run of frames.
    fn scan_step(&mut self, kernel: &mut impl Kernel) {
        let Some(from) = self.scan else { return };
        self.scan = match kernel.ask(&FrameRuns { from, most: u64::MAX }) {
            Ok(run) if run.count > 0 => {
                if run.state == FrameState::Free {
                    self.pool.give_back(run.start, run.count);
                }
                run.start.0.checked_add(run.count).map(Frame)
            }
            _ => None,
        };
    }

    /// Takes frames in a row from the pool; before it gives up it looks for others, and lets those be written back that wait.
    fn take(&mut self, frames: u64, kernel: &mut impl Kernel) -> Option<Frame> {
        if let Some(frame) = self.pool.take(frames) {
            return Some(frame);
        }
        if self.look(kernel)
            && let Some(frame) = self.pool.take(frames)
        {
            return Some(frame);
        }
        // Who asked may ask again when they are free. What only this CPU owes is so at once.
        self.keep_reserve(kernel);
        if self.look(kernel) { self.pool.take(frames) } else { None }
    }

    /// Whether so many more frames are free than are known that it's worth to look for them.
    pub(crate) fn knows_little(&self, kernel: &mut impl Kernel) -> bool {
        let free = kernel.ask(&FrameCount {}).map_or(0, |counts| counts.free);
        self.scan.is_none() && free >= self.pool.free() + RESERVE
    }

    /// Enumerates all frames anew if more are free than are known.
    fn look(&mut self, kernel: &mut impl Kernel) -> bool {
        let free = kernel.ask(&FrameCount {}).map_or(0, |counts| counts.free);
        let more = self.scan.is_some() || free > self.pool.free();
        if more {
            self.rescan(kernel);
        }
        more
    }

    /// Sees to it that some frames are free, before somebody has to wait for them.
    pub(crate) fn keep_reserve(&mut self, kernel: &mut impl Kernel) {
        if let Ok(counts) = kernel.ask(&FrameCount {})
            && counts.free < RESERVE
            && counts.quarantined > 0
        {
            kernel.want(RESERVE - counts.free);
        }
    }
}

/// Why there is nothing to give: it may come soon, or it doesn't exist.
pub(crate) fn lacking(kernel: &mut impl Kernel) -> Status {
    let quarantined = kernel.ask(&FrameCount {}).map_or(0, |counts| counts.quarantined);
    if quarantined > 0 { Status::Busy } else { Status::Exhausted }
}

/// Frames that nobody was promised, now or once what is owed for them is paid.
pub(crate) fn unpromised(promises: &Promises, kernel: &mut impl Kernel) -> Result<u64, Status> {
    let counts = kernel.ask(&FrameCount {})?;
    Ok(counts.free.saturating_add(counts.quarantined).saturating_sub(promises.outstanding(kernel)))
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// A VM that its handler asks something of.
fn own(vm: VmId, sender: ServiceId, kernel: &mut impl Kernel) -> Result<VmReport, Status> {
    let report = vm_report(vm, kernel)?;
    if report.handler != sender {
        return Err(Status::Denied);
    }
    if report.state == VmState::Alive { Ok(report) } else { Err(Status::State) }
}

/// The VM in the kernel's table under this id.
fn vm_report(vm: VmId, kernel: &mut impl Kernel) -> Result<VmReport, Status> {
    let report = kernel.ask(&VmInfo { slot: vm.index() as u16 })?;
    if report.vm == vm { Ok(report) } else { Err(Status::NotFound) }
}

/// Every VM in the kernel's table.
fn vms<K: Kernel>(kernel: &mut K) -> impl Iterator<Item = VmReport> + use<'_, K> {
    vms_from(0, kernel)
}

/// Every VM in the kernel's table from a slot on.
fn vms_from<K: Kernel>(slot: u16, kernel: &mut K) -> impl Iterator<Item = VmReport> + use<'_, K> {
    let mut slot = slot;
    core::iter::from_fn(move || {
        let report = kernel.ask(&VmInfo { slot }).ok()?;
        // A table that doesn't advance would never end.
        (report.next > slot).then(|| {
            slot = report.next;
            report
        })
    })
}

#[cfg(test)]
mod tests;
