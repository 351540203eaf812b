//! A kernel that enforces the rules on frames, a notifier that settles now or later, and the bells.

use std::collections::{BTreeMap, BTreeSet};

use caisson_proto::addr::{BatchId, Gfn, Sequence, ServiceId};
use caisson_proto::kernel::*;
use caisson_proto::wire::Done;

use super::super::*;

/// Frames of the machine: 48 MiB.
pub const FRAMES: u64 = 12 * 1024;
/// What the kernel keeps for itself, in the middle of a chunk.
pub const KERNEL: std::ops::Range<u64> = 700..1100;
const STOCK: u64 = 64;
const PER_MAP: u64 = 12;

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
    /// Of the last mapping.
    pub last_access: Access,
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
            last_access: Access::empty(),
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

    fn serve(&mut self, words: &Words) -> Result<Words, Status> {
        self.operations += 1;
        Ok(match KernelCall::decode(words).expect("well-formed") {
            KernelCall::FrameRuns(FrameRuns { from, most }) => {
                let rest = &self.frames[(from.0 as usize).min(self.frames.len())..];
                let first = rest.first().copied();
                let same =
                    rest.iter().take(most.clamp(1, 3000) as usize).take_while(|&&state| Some(state) == first).count();
                let (state, vm) = match first {
                    Some(State::Free) => (FrameState::Free, None),
                    Some(State::KernelOf(vm)) => (FrameState::Kernel, Some(vm)),
                    Some(State::Owned(vm)) => (FrameState::Owned, Some(vm)),
                    Some(State::Quarantined(_)) => (FrameState::Quarantined, None),
                    Some(State::Leaked) => (FrameState::Leaked, None),
                    Some(State::Kernel) | None => (FrameState::Kernel, None),
                };
                FrameRun {
                    start: from,
                    count: same as u64,
                    state,
                    vm: vm.unwrap_or_default(),
                    owned_by_vm: vm.is_some(),
                }
                .encode()
            }
            KernelCall::FrameCount(_) => FrameCounts {
                free: self.free(),
                kernel: self.count(|state| matches!(state, State::Kernel | State::KernelOf(_))),
                owned: self.count(|state| matches!(state, State::Owned(_))),
                private: 0,
                firmware: 0,
                quarantined: self.count(|state| matches!(state, State::Quarantined(_))),
                leaked: self.count(|state| state == State::Leaked),
            }
            .encode(),
            KernelCall::VmCreate(VmCreate { handler, root, .. }) => {
                self.check_free(root, 1);
                let slot = self.vms.iter().position(Option::is_none).ok_or(Status::Exhausted)?;
                let id = VmId::new(slot as u16, self.generations[slot]);
                self.take(root, 1, State::KernelOf(id));
                self.vms[slot] = Some(Vm {
                    id,
                    handler,
                    dying: false,
                    map: BTreeMap::new(),
                    private: BTreeSet::new(),
                    held: None,
                    stock: 0,
                    kernel_frames: 1,
                    vcpus: 0,
                    stopping: 0,
                });
                VmCreated { vm: id }.encode()
            }
            KernelCall::VmDestroy(VmDestroy { vm }) => {
                self.vm(vm)?.dying = true;
                Done {}.encode()
            }
            KernelCall::VmInfo(VmInfo { slot }) => {
                let rest = self.vms.iter().enumerate().skip(usize::from(slot));
                let (slot, vm) = rest.filter_map(|(n, vm)| Some((n, vm.as_ref()?))).next().ok_or(Status::NotFound)?;
                VmReport {
                    vm: vm.id,
                    handler: vm.handler,
                    kind: VmKind::Plain,
                    state: if vm.dying { VmState::Dying } else { VmState::Alive },
                    pages: vm.map.len() as u64,
                    kernel_frames: vm.kernel_frames,
                    next: slot as u16 + 1,
                    sequence: Sequence(1),
                }
                .encode()
            }
            KernelCall::TablesDonate(TablesDonate { vm, frame, count }) => {
                self.check_free(frame, count);
                let it = self.vm(vm)?;
                if it.stock + count > STOCK {
                    return Err(Status::Range);
                }
                it.stock += count;
                it.kernel_frames += count;
                self.take(frame, count, State::KernelOf(vm));
                Done {}.encode()
            }
            KernelCall::VcpuCreate(VcpuCreate { vcpu, frame, .. }) => {
                self.check_free(frame, VCPU_FRAMES);
                let it = self.vm(vcpu.vm)?;
                assert_eq!(it.vcpus, vcpu.index);
                if it.stock < PER_MAP {
                    return Err(Status::Exhausted);
                }
                it.vcpus += 1;
                it.kernel_frames += VCPU_FRAMES;
                self.take(frame, VCPU_FRAMES, State::KernelOf(vcpu.vm));
                Done {}.encode()
            }
            KernelCall::GuestMap(GuestMap { vm, gfn, frame, pages, access, .. }) => {
                self.last_access = access;
                if self.vm(vm)?.dying {
                    return Err(Status::State);
                }
                if self.stale > 0 {
                    self.stale -= 1;
                    return Err(Status::Stale);
                }
                self.check_free(frame, pages);
                let it = self.vm(vm)?;
                if it.stock < PER_MAP {
                    return Err(Status::Exhausted);
                }
                if it.map.range(gfn.0..gfn.0 + pages).next().is_some() {
                    return Err(Status::State);
                }
                it.stock -= 1;
                it.map.extend((0..pages).map(|n| (gfn.0 + n, frame.0 + n)));
                self.take(frame, pages, State::Owned(vm));
                Done {}.encode()
            }
            KernelCall::GuestUnmap(GuestUnmap { vm, view, gfn, pages, more, broken }) => {
                if view > 0 {
                    return Err(Status::Range);
                }
                let no_batch = self.no_batch;
                let it = self.vm(vm)?;
                if it.stopping > 0 {
                    it.stopping -= 1;
                    return Err(Status::Busy);
                }
                if more && no_batch {
                    return Err(Status::Busy);
                }
                let end = gfn.0 + pages;
                let taken: Vec<_> = it.map.range(gfn.0..end).take(512).map(|(&g, &f)| (g, f)).collect();
                let next = if taken.len() < 512 { end } else { taken[511].0 + 1 };
                for (gfn, _) in &taken {
                    it.map.remove(gfn);
                    it.private.remove(gfn);
                }
                let held = it.held;
                if taken.is_empty() && (more || held.is_none()) {
                    return Ok(Unmapped { batch: BatchId(0), pages: 0, next: Gfn(end), waiting: 0 }.encode());
                }
                let batch = held.unwrap_or_else(|| if more { self.new_batch(vm) } else { self.batch(vm) });
                for &(_, frame) in &taken {
                    assert_eq!(self.frames[frame as usize], State::Owned(vm));
                    self.frames[frame as usize] = if broken { State::Leaked } else { State::Quarantined(batch) };
                }
                self.vm(vm)?.held = more.then_some(batch);
                self.shootdowns += u32::from(!more);
                let waiting = match held {
                    _ if more => 0,
                    Some(_) => self.count(|state| state == State::Quarantined(batch)),
                    None if broken => 0,
                    None => taken.len() as u64,
                };
                Unmapped { batch: BatchId(batch), pages: taken.len() as u64, next: Gfn(next), waiting }.encode()
            }
            KernelCall::GuestLook(GuestLook { vm, gfn, pages }) => {
                assert!((1..=512).contains(&pages), "{pages}");
                let it = self.vm(vm)?;
                let state = |gfn: u64| match it.map.contains_key(&gfn) {
                    false => FrameState::Free,
                    true if it.private.contains(&gfn) => FrameState::Private,
                    true => FrameState::Owned,
                };
                let count = (gfn.0..gfn.0 + pages).take_while(|at| state(*at) == state(gfn.0)).count() as u64;
                Look { pages: count, state: state(gfn.0), span: 1, frame: Frame(0) }.encode()
            }
            KernelCall::GuestConvert(GuestConvert { vm, gfn, pages, private, .. }) => {
                if let Some(left) = self.turns_left {
                    self.turns_left = left.checked_sub(1);
                    if left == 0 {
                        return Err(Status::Busy);
                    }
                }
                let it = self.vm(vm)?;
                if it.stock < PER_MAP {
                    return Err(Status::Exhausted);
                }
                for page in gfn.0..gfn.0 + pages {
                    if !it.map.contains_key(&page) || it.private.contains(&page) == private {
                        return Err(Status::State);
                    }
                }
                let pages_of = gfn.0..gfn.0 + pages;
                pages_of.for_each(|page| _ = if private { it.private.insert(page) } else { it.private.remove(&page) });
                self.turned.push((gfn.0, pages, private));
                Done {}.encode()
            }
            KernelCall::VmRelease(VmRelease { vm }) => {
                let it = self.vm(vm)?;
                assert!(it.dying);
                if !it.map.is_empty() || it.stopping > 0 || it.held.is_some() {
                    it.stopping = it.stopping.saturating_sub(1);
                    return Err(Status::Busy);
                }
                self.vms[vm.index()] = None;
                self.generations[vm.index()] += 1;
                let batch = self.batch(vm);
                let mut pages = 0;
                for state in self.frames.iter_mut().filter(|state| **state == State::KernelOf(vm)) {
                    *state = State::Quarantined(batch);
                    pages += 1;
                }
                Unmapped { batch: BatchId(batch), pages, next: Gfn(0), waiting: pages }.encode()
            }
            KernelCall::BatchInfo(BatchInfo { slot: 0 }) => {
                let held: Vec<u32> = self.vms.iter().flatten().filter_map(|vm| vm.held).collect();
                let mut open = self.batches.iter().filter(|(batch, _)| !held.contains(batch));
                let (&batch, &vm) = open.next().ok_or(Status::NotFound)?;
                let (kind, owed) = if self.encrypted { (VmKind::Sev, 2) } else { (VmKind::Plain, 0) };
                let frames = self.count(|state| state == State::Quarantined(batch));
                BatchReport { batch: BatchId(batch), vm, kind, frames, owed, next: 1 }.encode()
            }
            KernelCall::MachineInfo(_) => return Err(Status::Unsupported),
            KernelCall::BatchInfo(_) => return Err(Status::NotFound),
            other => panic!("{other:?} isn't memory's"),
        })
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
}
