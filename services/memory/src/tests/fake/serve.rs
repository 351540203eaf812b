//! The kernel's operations.

use super::*;

const STOCK: u64 = 64;
const PER_MAP: u64 = 12;

impl Fake {
    pub(super) fn serve(&mut self, words: &Words) -> Result<Words, Status> {
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
            KernelCall::MachineInfo(_) => {
                let features = self.features.ok_or(Status::Unsupported)?;
                Machine { cpus: 2, tsc_khz: 1000, features, frames: FRAMES, asids: 8, services: 8, sev_asids: 0 }
                    .encode()
            }
            KernelCall::BatchInfo(_) => return Err(Status::NotFound),
            other => panic!("{other:?} isn't memory's"),
        })
    }
}
