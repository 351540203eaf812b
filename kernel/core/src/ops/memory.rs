//! Operations on frames and VMs.

use core::sync::atomic::Ordering;

use caisson_proto::abi::{MAX_PAGES_PER_CALL, MAX_VCPUS, MAX_VIEWS, MAX_VMS, Status};
use caisson_proto::addr::{Frame, Gfn, VmId};
use caisson_proto::kernel::{
    FrameCounts, FrameRun, FrameRuns, FrameState, GuestMap, GuestUnmap, SequenceNow, SequenceRead, TablesDonate,
    Unmapped, VCPU_FRAMES, VcpuCreate, VmCreate, VmCreated, VmDestroy, VmInfo, VmKind, VmRelease, VmReport, VmState,
};
use caisson_proto::wire::Done;

use super::{Answer, Call, ok};
use crate::context::{Context, Phase};
use crate::event::Event;
use crate::frames::FrameTable;
use crate::kernel::Tables;
use crate::machine::{Machine, TablePool};
use crate::vms::{self, Books, STOCK, TABLES_PER_MAP, Vm};

/// Frames that one look at the table covers at the most.
const RUN_LIMIT: u64 = 1 << 15;
/// A guest's memory ends where its handler's window ends.
const GUEST_PAGES: u64 = (caisson_proto::layout::USER_END - caisson_proto::layout::GUEST) >> 12;

fn frames(tables: &Tables) -> Result<&FrameTable, Status> {
    tables.frames.as_ref().ok_or(Status::State)
}

/// Checks that a range of guest frames is one that a single call may name.
fn in_guest(gfn: Gfn, pages: u64, most: u64) -> Result<(), Status> {
    let end = gfn.0.checked_add(pages).ok_or(Status::Range)?;
    if pages == 0 || pages > most || end > GUEST_PAGES { Err(Status::Range) } else { Ok(()) }
}

impl<M: Machine> Call<'_, M> {
    fn alive(&self, id: VmId) -> Result<(usize, &Vm), Status> {
        let found = vms::find(&self.here.kernel.vms, id)?;
        if found.1.state() == Some(VmState::Alive) { Ok(found) } else { Err(Status::State) }
    }

    pub(super) fn frame_runs(&self, request: &FrameRuns) -> Answer {
        let tables = self.here.tables();
        let table = frames(&tables)?;
        let at = |frame: u64| table.get(Frame(frame), &self.here.batches).map(|it| (it.state(), it.vm()));
        let Some((state, vm)) = at(request.from.0) else {
            return ok(FrameRun {
                start: request.from,
                count: 0,
                state: FrameState::Leaked,
                vm: VmId::default(),
                owned_by_vm: false,
            });
        };
        let count = (1..RUN_LIMIT).find(|n| at(request.from.0 + n) != Some((state, vm))).unwrap_or(RUN_LIMIT);
        ok(FrameRun { start: request.from, count, state, vm: vm.unwrap_or_default(), owned_by_vm: vm.is_some() })
    }

    pub(super) fn frame_count(&self) -> Answer {
        let tables = self.here.tables();
        let [free, kernel, owned, private, firmware, quarantined, leaked] = frames(&tables)?.counts();
        ok(FrameCounts { free, kernel, owned, private, firmware, quarantined, leaked })
    }

    pub(super) fn vm_create(&self, request: &VmCreate) -> Answer {
        let handler = self.here.service(request.handler.index());
        if handler.id() != request.handler || !handler.is_alive() {
            return Err(Status::Dead);
        }
        if handler.is_vmm.load(Ordering::Relaxed) == 0 {
            return Err(Status::Denied);
        }
        if !self.here.machine.runs(request.kind) {
            return Err(Status::Unsupported);
        }
        let mut tables = self.here.tables();
        frames(&tables)?.check_free(request.root, 1, &self.here.batches)?;
        let (slot, vm) =
            self.here.vms.iter().enumerate().find(|(_, vm)| vm.state().is_none()).ok_or(Status::Exhausted)?;
        let taken = |asid: u32| {
            let mut used = self.here.vms.iter().zip(&tables.books).filter(|(vm, _)| vm.state().is_some());
            used.any(|(_, books)| books.asid == asid)
        };
        let asid = (1..self.here.machine.facts().asids).find(|asid| !taken(*asid)).ok_or(Status::Exhausted)?;
        let id = vm.begin(slot, request.handler, request.root);
        if let Some(books) = tables.books.get_mut(slot) {
            *books = Books { kind: request.kind, asid, kernel_frames: 1, ..Books::new() };
        }
        frames(&tables)?.adopt(request.root, 1, id);
        self.here.machine.adopt(request.root);
        self.here.machine.log(Event::VmMade(id, request.handler));
        ok(VmCreated { vm: id })
    }

    pub(super) fn vm_destroy(&self, request: &VmDestroy) -> Answer {
        let _nothing_starts = self.here.tables();
        let (slot, vm) = vms::find(&self.here.kernel.vms, request.vm)?;
        vm.dying();
        self.here.stop_vcpus(slot);
        ok(Done {})
    }

    pub(super) fn vm_info(&self, request: &VmInfo) -> Answer {
        let tables = self.here.tables();
        let rest = self.here.vms.iter().zip(&tables.books).enumerate().skip(usize::from(request.slot));
        let mut existing = rest.filter_map(|(slot, (vm, books))| vm.state().map(|state| (slot, vm, books, state)));
        let (slot, vm, books, state) = existing.next().ok_or(Status::NotFound)?;
        ok(VmReport {
            vm: vm.id(),
            handler: vm.handler(),
            kind: books.kind,
            state,
            pages: books.pages,
            kernel_frames: books.kernel_frames,
            next: slot as u16 + 1,
        })
    }

    pub(super) fn tables_donate(&self, request: &TablesDonate) -> Answer {
        let (slot, _) = self.alive(request.vm)?;
        let mut tables = self.here.tables();
        let Tables { frames: Some(table), books, .. } = &mut *tables else { return Err(Status::State) };
        let books = books.get_mut(slot).ok_or(Status::Dead)?;
        if request.count == 0 || request.count > (STOCK - books.stock.len()) as u64 {
            return Err(Status::Range);
        }
        table.check_free(request.frame, request.count, &self.here.batches)?;
        table.adopt(request.frame, request.count, request.vm);
        books.kernel_frames += request.count;
        for frame in request.frame.0..request.frame.0 + request.count {
            self.here.machine.adopt(Frame(frame));
            books.stock.give_back(Frame(frame));
        }
        ok(Done {})
    }

    pub(super) fn vcpu_create(&self, request: &VcpuCreate) -> Answer {
        let (slot, vm) = self.alive(request.vcpu.vm)?;
        let index = usize::from(request.vcpu.index);
        if usize::from(request.cpu.0) >= self.here.cpu_count() {
            return Err(Status::Range);
        }
        let root = vm.root(0).ok_or(Status::State)?;
        let handler = vm.handler();
        let mut tables = self.here.tables();
        let Tables { frames: Some(table), books, .. } = &mut *tables else { return Err(Status::State) };
        let books = books.get_mut(slot).ok_or(Status::Dead)?;
        let place = books.vcpus.get_mut(index).ok_or(Status::Range)?;
        if place.is_some() {
            return Err(Status::State);
        }
        table.check_free(request.frame, VCPU_FRAMES, &self.here.batches)?;
        if books.stock.len() < TABLES_PER_MAP {
            return Err(Status::Exhausted);
        }
        for frame in request.frame.0..request.frame.0 + VCPU_FRAMES {
            self.here.machine.adopt(Frame(frame));
        }
        table.adopt(request.frame, VCPU_FRAMES, request.vcpu.vm);
        *place = Some(request.frame);
        books.kernel_frames += VCPU_FRAMES;
        let context = Context::vcpu(slot, index);
        // With a full stock this can't fail.
        let made =
            self.here.machine.vcpu_create(context, handler.index(), request.frame, books.asid, root, &mut books.stock);
        let state = self.here.context(context);
        state.home.store(request.cpu.0, Ordering::SeqCst);
        state.pending.store(0, Ordering::SeqCst);
        state.deadline.store(0, Ordering::SeqCst);
        state.set_phase(Phase::Idle);
        vm.vcpus.fetch_or(1 << index, Ordering::AcqRel);
        made?;
        ok(Done {})
    }

    pub(super) fn sequence_read(&self, request: &SequenceRead) -> Answer {
        let (slot, _) = vms::find(&self.here.kernel.vms, request.vm)?;
        let tables = self.here.tables();
        let books = tables.books.get(slot).ok_or(Status::Dead)?;
        ok(SequenceNow { sequence: books.invalidation.sequence() })
    }

    pub(super) fn guest_map(&self, request: &GuestMap) -> Answer {
        let (slot, vm) = self.alive(request.vm)?;
        let GuestMap { gfn, frame, pages, access, .. } = *request;
        in_guest(gfn, pages, MAX_PAGES_PER_CALL)?;
        let root = vm.root(request.view).ok_or(Status::Range)?;
        let handler = vm.handler().index();
        let mut tables = self.here.tables();
        let Tables { frames: Some(table), books, .. } = &mut *tables else { return Err(Status::State) };
        let books = books.get_mut(slot).ok_or(Status::Dead)?;
        books.invalidation.commit(request.sequence, gfn, pages)?;
        let clean = table.check_free(frame, pages, &self.here.batches)?;
        if books.stock.len() < TABLES_PER_MAP {
            return Err(Status::Exhausted);
        }
        // Before anybody can see them.
        if !clean {
            self.here.machine.zero(frame, pages);
            table.zeroed(frame, pages);
        }
        // The nested table refuses what is mapped already and changes nothing then.
        self.here.machine.nested_map(root, gfn, frame, pages, access, &mut books.stock)?;
        table.own(frame, pages, request.vm);
        books.pages += pages;
        // The window holds what view 0 holds, so nothing is there either.
        self.here.machine.window_map(handler, gfn, frame, pages, &mut books.stock)?;
        ok(Done {})
    }

    pub(super) fn guest_unmap(&self, request: &GuestUnmap) -> Answer {
        let (slot, vm) = vms::find(&self.here.kernel.vms, request.vm)?;
        in_guest(request.gfn, request.pages, GUEST_PAGES)?;
        let root = vm.root(request.view).ok_or(Status::Range)?;
        let handler = vm.handler().index();
        let end = Gfn(request.gfn.0 + request.pages);
        let mut tables = self.here.tables();
        let Tables { frames: Some(table), books, .. } = &mut *tables else { return Err(Status::State) };
        let books = books.get_mut(slot).ok_or(Status::Dead)?;
        if vm.state() == Some(VmState::Dying) && !self.here.vcpus_idle(slot) {
            return Err(Status::Busy);
        }
        self.here.batches.check_room(books.kind)?;
        let mut taken = heapless::Vec::<(Frame, u64), { MAX_PAGES_PER_CALL as usize }>::new();
        let (mut pages, mut next) = (0, request.gfn);
        let mut lacking = None;
        while pages < MAX_PAGES_PER_CALL && next < end {
            // Splitting a large page takes a table here and one in the window.
            if vm.state() == Some(VmState::Alive) && books.stock.len() < 2 {
                lacking = Some(Status::Exhausted);
                break;
            }
            match self.here.machine.nested_unmap(root, next, end, &mut books.stock) {
                Ok(Some(removed)) => {
                    next = Gfn(removed.gfn.0 + removed.pages);
                    pages += removed.pages;
                    // At most MAX_PAGES_PER_CALL steps of one page or more. The window holds the same pages.
                    let _ = taken.push((removed.frame, removed.pages));
                    let _ = self.here.machine.window_unmap(handler, removed.gfn, removed.pages, &mut books.stock);
                }
                Ok(None) => next = end,
                Err(status) => {
                    lacking = Some(status);
                    break;
                }
            }
        }
        if pages == 0 {
            return match lacking {
                Some(status) => Err(status),
                None => ok(Unmapped { batch: Default::default(), pages: 0, next: end }),
            };
        }
        books.pages = books.pages.saturating_sub(pages);
        self.here.machine.flush_translations();
        self.shoot_down(slot);
        let batch = self.here.batches.open(request.vm, books.kind, &self.owing(slot, books.kind))?;
        for (frame, count) in &taken {
            table.quarantine(*frame, *count, FrameState::Owned, batch);
        }
        self.here.batches.join(batch, pages);
        ok(Unmapped { batch, pages, next })
    }

    /// Completes when no CPU uses a translation of the VM that was made before: every vCPU that was in its guest
    /// has left it, and each will flush before it enters again.
    fn shoot_down(&self, vm: usize) {
        let present = self.here.vms.get(vm).map_or(0, |vm| vm.vcpus.load(Ordering::Acquire));
        for index in (0..MAX_VCPUS).filter(|index| present >> index & 1 == 1) {
            let context = Context::vcpu(vm, index);
            let state = self.here.context(context);
            state.make_stale();
            let world = state.world();
            while world & 1 == 1 && state.world() == world {
                self.here.machine.interrupt_cpu(caisson_proto::addr::CpuId(state.home.load(Ordering::SeqCst)));
                self.here.machine.relax();
            }
        }
    }

    /// CPUs that may hold dirty lines of the VM's encrypted memory: those that ran it since they last wrote back.
    fn owing(&self, vm: usize, kind: VmKind) -> [u64; crate::batches::CPU_WORDS] {
        let mut owing = [0; crate::batches::CPU_WORDS];
        if kind != VmKind::Plain {
            for (index, cpu) in self.here.cpus.iter().enumerate() {
                if let Some(word) = owing.get_mut(index / 64) {
                    *word |= (cpu.ran.load(Ordering::SeqCst) >> (vm % 64) & 1) << (index % 64);
                }
            }
        }
        owing
    }

    pub(super) fn vm_release(&self, request: &VmRelease) -> Answer {
        let (slot, vm) = vms::find(&self.here.kernel.vms, request.vm)?;
        if vm.state() != Some(VmState::Dying) {
            return Err(Status::State);
        }
        let mut tables = self.here.tables();
        let Tables { frames: Some(table), books, .. } = &mut *tables else { return Err(Status::State) };
        let books = books.get_mut(slot).ok_or(Status::Dead)?;
        if books.pages != 0 || !self.here.vcpus_idle(slot) {
            return Err(Status::Busy);
        }
        let batch = self.here.batches.open(request.vm, VmKind::Plain, &[])?;
        let handler = vm.handler().index();
        let mut sink = Sink { machine: self.here.machine, table, batch, count: 0 };
        for (index, place) in books.vcpus.iter_mut().enumerate() {
            if let Some(first) = place.take() {
                self.here.machine.vcpu_drop(Context::vcpu(slot, index), handler);
                for frame in first.0..first.0 + VCPU_FRAMES {
                    sink.give_back(Frame(frame));
                }
            }
        }
        self.here.machine.window_drop(handler, &mut sink);
        for view in 0..MAX_VIEWS as u8 {
            if let Some(root) = vm.root(view) {
                self.here.machine.nested_drop(root, &mut sink);
            }
        }
        while let Some(frame) = books.stock.pop() {
            sink.give_back(frame);
        }
        let pages = sink.count;
        self.here.machine.flush_translations();
        self.here.batches.join(batch, pages);
        *books = Books::new();
        vm.end();
        debug_assert!(slot < MAX_VMS);
        self.here.machine.log(Event::VmGone(request.vm));
        ok(Unmapped { batch, pages, next: Gfn(0) })
    }
}

/// Takes a dead VM's kernel frames: unmaps them and puts them into a batch.
struct Sink<'a, M: Machine> {
    machine: &'a M,
    table: &'a FrameTable,
    batch: caisson_proto::addr::BatchId,
    count: u64,
}

impl<M: Machine> TablePool for Sink<'_, M> {
    fn take(&mut self) -> Option<Frame> {
        None
    }
    fn give_back(&mut self, frame: Frame) {
        self.machine.disown(frame);
        self.table.quarantine(frame, 1, FrameState::Kernel, self.batch);
        self.count += 1;
    }
}
