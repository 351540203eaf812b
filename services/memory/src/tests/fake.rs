//! A kernel that enforces the rules on frames, a notifier that settles now or later, and the bells.

use std::collections::BTreeMap;

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
}

#[derive(Debug)]
pub struct Vm {
    pub id: VmId,
    pub handler: ServiceId,
    pub dying: bool,
    pub map: BTreeMap<u64, u64>,
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
        let any = !self.batches.is_empty();
        self.batches.clear();
        for state in &mut self.frames {
            if let State::Quarantined(_) = state {
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
        if let Some((&batch, _)) = self.batches.iter().find(|&(_, &of)| of == vm) {
            return batch;
        }
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
                leaked: 0,
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
            KernelCall::GuestUnmap(GuestUnmap { vm, view, gfn, pages }) => {
                if view > 0 {
                    return Err(Status::Range);
                }
                let it = self.vm(vm)?;
                if it.stopping > 0 {
                    it.stopping -= 1;
                    return Err(Status::Busy);
                }
                let end = gfn.0 + pages;
                let taken: Vec<_> = it.map.range(gfn.0..end).take(512).map(|(&g, &f)| (g, f)).collect();
                let next = if taken.len() < 512 { end } else { taken[511].0 + 1 };
                for (gfn, _) in &taken {
                    it.map.remove(gfn);
                }
                if taken.is_empty() {
                    return Ok(Unmapped { batch: BatchId(0), pages: 0, next: Gfn(end) }.encode());
                }
                let batch = self.batch(vm);
                for &(_, frame) in &taken {
                    assert_eq!(self.frames[frame as usize], State::Owned(vm));
                    self.frames[frame as usize] = State::Quarantined(batch);
                }
                Unmapped { batch: BatchId(batch), pages: taken.len() as u64, next: Gfn(next) }.encode()
            }
            KernelCall::VmRelease(VmRelease { vm }) => {
                let it = self.vm(vm)?;
                assert!(it.dying);
                if !it.map.is_empty() || it.stopping > 0 {
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
                Unmapped { batch: BatchId(batch), pages, next: Gfn(0) }.encode()
            }
            KernelCall::BatchInfo(BatchInfo { slot: 0 }) => {
                let (&batch, &vm) = self.batches.first_key_value().ok_or(Status::NotFound)?;
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
