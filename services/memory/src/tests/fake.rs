//! A kernel that enforces the rules on frames, a notifier that settles now or later, and the bells.

use std::collections::{BTreeMap, BTreeSet};

use caisson_proto::addr::{BatchId, Gfn, Sequence, ServiceId};
use caisson_proto::kernel::*;
use caisson_proto::wire::Done;

use super::super::*;

mod serve;

/// Frames of the machine: 48 MiB.
pub const FRAMES: u64 = 12 * 1024;
/// What the kernel keeps for itself, in the middle of a chunk.
pub const KERNEL: std::ops::Range<u64> = 700..1100;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Free,
    Kernel,
    KernelOf(VmId),
    Owned(VmId),
    Quarantined(u32),
    Leaked,
}

#[derive(Debug)]
pub struct Vm {
    pub id: VmId,
    pub handler: ServiceId,
    pub dying: bool,
    pub map: BTreeMap<u64, u64>,
    /// Which of its pages are private.
    pub private: BTreeSet<u64>,
    /// The batch of an event that goes on.
    pub held: Option<u32>,
    pub stock: u64,
    pub kernel_frames: u64,
    pub vcpus: u8,
    /// Asks until its vCPUs have stopped.
    pub stopping: u32,
}

#[derive(Debug)]
pub struct Fake {
    pub frames: Vec<State>,
    pub vms: Vec<Option<Vm>>,
    generations: Vec<u16>,
    pub batches: BTreeMap<u32, VmId>,
    next_batch: u32,
    pub posted: Vec<Reclaimed>,
    pub ring_full: bool,
    pub settles: u32,
    pub wanted: Vec<u64>,
    /// What leaves VMs owes write-backs.
    pub encrypted: bool,
    pub settled: u32,
    pub again: bool,
    pub later: bool,
    /// Refuse this many commits as stale.
    pub stale: u32,
    pub operations: u64,
    /// The machine has no bell for oneself.
    pub no_bell: bool,
    /// Memory dies after so many operations: nothing that it does then has an effect.
    pub dies_after: Option<u64>,
    /// Whom a shortage was told, in order, and whether there is to be another round.
    pub told: Vec<ServiceId>,
    pub round: bool,
    /// Its time has come.
    pub due: bool,
    /// Of the last mapping.
    pub last_access: Access,
    /// What the machine can do, if it tells.
    pub features: Option<Features>,
    /// Shootdowns, and conversions: first page, how many, private.
    pub shootdowns: u32,
    pub turned: Vec<(u64, u64, bool)>,
    /// Refuse the conversion after so many.
    pub turns_left: Option<u32>,
    /// No batch is left for an event.
    pub no_batch: bool,
    /// Pages whose contents were lent on, by the page of the lease; some can't be read.
    pub lent: Vec<u64>,
    pub unreadable: Option<u64>,
}

impl Fake {
    pub fn new() -> Self {
        let state = |frame| if KERNEL.contains(&frame) { State::Kernel } else { State::Free };
        Self {
            frames: (0..FRAMES).map(state).collect(),
            vms: (0..4).map(|_| None).collect(),
            generations: vec![0; 4],
            batches: BTreeMap::new(),
            next_batch: 1,
            posted: Vec::new(),
            ring_full: false,
            settles: 0,
            wanted: Vec::new(),
            encrypted: false,
            settled: 0,
            again: false,
            later: false,
            stale: 0,
            operations: 0,
            no_bell: false,
            dies_after: None,
            told: Vec::new(),
            round: false,
            due: false,
            last_access: Access::empty(),
            features: None,
            shootdowns: 0,
            turned: Vec::new(),
            turns_left: None,
            no_batch: false,
            lent: Vec::new(),
            unreadable: None,
        }
    }

    pub fn count(&self, wanted: impl Fn(State) -> bool) -> u64 {
        self.frames.iter().filter(|&&state| wanted(state)).count() as u64
    }

    /// Pages that the VM in this slot has.
    pub fn mapped(&self, slot: usize) -> usize {
        self.vms[slot].as_ref().map_or(0, |vm| vm.map.len())
    }

    pub fn free(&self) -> u64 {
        self.count(|state| state == State::Free)
    }

    /// The handler of a VM dies.
    pub fn orphan(&mut self, handler: ServiceId, stopping: u32) {
        for vm in self.vms.iter_mut().flatten().filter(|vm| vm.handler == handler) {
            vm.dying = true;
            vm.stopping = stopping;
        }
    }

    /// What notifier does: all open batches are paid. True if there was one: memory's bell rings.
    pub fn pay(&mut self) -> bool {
        self.posted.clear();
        let held: BTreeSet<u32> = self.vms.iter().flatten().filter_map(|vm| vm.held).collect();
        let any = self.batches.keys().any(|batch| !held.contains(batch));
        self.batches.retain(|batch, _| held.contains(batch));
        for state in &mut self.frames {
            if matches!(state, State::Quarantined(batch) if !held.contains(batch)) {
                *state = State::Free;
            }
        }
        any
    }

    fn take(&mut self, first: Frame, count: u64, to: State) {
        for frame in first.0..first.0 + count {
            self.frames[frame as usize] = to;
        }
    }

    /// Memory never offers a frame that isn't free: its pool follows the kernel's table.
    fn check_free(&self, first: Frame, count: u64) {
        for frame in first.0..first.0 + count {
            assert_eq!(self.frames[frame as usize], State::Free, "frame {frame}");
        }
    }

    fn vm(&mut self, id: VmId) -> Result<&mut Vm, Status> {
        self.vms[id.index()].as_mut().filter(|vm| vm.id == id).ok_or(Status::Dead)
    }

    fn batch(&mut self, vm: VmId) -> u32 {
        let held = self.vms[vm.index()].as_ref().and_then(|vm| vm.held);
        if let Some((&batch, _)) = self.batches.iter().find(|&(batch, &of)| of == vm && Some(*batch) != held) {
            return batch;
        }
        self.new_batch(vm)
    }

    fn new_batch(&mut self, vm: VmId) -> u32 {
        let batch = self.next_batch;
        self.next_batch += 1;
        self.batches.insert(batch, vm);
        batch
    }

    fn dead(&self) -> bool {
        self.dies_after == Some(0)
    }
}

impl Kernel for Fake {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        if self.dead() {
            return Err(Status::Died);
        }
        self.dies_after = self.dies_after.map(|left| left - 1);
        self.serve(&request.encode()).map(|words| R::Reply::decode(&words).unwrap())
    }
    fn lend<R: Request>(&mut self, request: &R, lease: Lease) -> Result<R::Reply, Status> {
        assert_eq!((R::OP, lease.pages, lease.write), (GuestMap::OP, 1, false));
        if self.unreadable == Some(lease.page.0) {
            return Err(Status::BadLease);
        }
        let answer = self.ask(request);
        if answer.is_ok() {
            self.lent.push(lease.page.0);
        }
        answer
    }
    fn post(&mut self, reclaimed: &Reclaimed) -> bool {
        assert!(self.batches.contains_key(&reclaimed.batch));
        if !self.ring_full && !self.dead() {
            self.posted.push(*reclaimed);
        }
        !self.ring_full
    }
    fn settle(&mut self) {
        self.settles += u32::from(!self.dead());
    }
    fn want(&mut self, frames: u64) {
        self.wanted.push(frames);
    }
    fn settled(&mut self) {
        self.settled += u32::from(!self.dead());
    }
    fn again(&mut self) -> bool {
        self.again = !self.no_bell;
        self.again
    }
    fn later(&mut self) {
        self.later = true;
    }
    fn tell_need(&mut self, vmm: ServiceId) {
        self.told.push(vmm);
    }
    fn next_round(&mut self) {
        self.round = true;
    }
    fn round_is_due(&mut self) -> bool {
        core::mem::take(&mut self.due)
    }
}
