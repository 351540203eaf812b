//! Operations on frames and VMs.

use super::{Answer, Call, ok};
use crate::prelude::*;

/// Frames that one look at the table covers at the most.
const RUN_LIMIT: u64 = 1 << 15;
/// Pages whose mappings one call looks through at the most: 1 GiB of them.
const UNMAP_SPAN: u64 = 1 << 18;
/// A guest's memory ends where its handler's window ends.
const GUEST_PAGES: u64 = (caisson_proto::layout::USER_END - caisson_proto::layout::GUEST) >> 12;

/// Checks that a range of guest frames is one that a single call may name.
fn in_guest(gfn: Gfn, pages: u64, most: u64) -> Outcome {
    let end = gfn.0.checked_add(pages).ok_or(Status::Range)?;
    ensure((1..=most).contains(&pages) && end <= GUEST_PAGES, Status::Range)
}

impl<M: Machine> Call<'_, M> {
    pub(super) fn alive(&self, id: VmId) -> Result<(usize, &Vm), Status> {
        let found = vms::find(&self.vms, id)?;
        ensure(found.1.state() == Some(VmState::Alive), Status::State)?;
        Ok(found)
    }

    pub(super) fn frame_runs(&self, request: &FrameRuns) -> Answer {
        let (tables, from) = (self.tables(), request.from);
        let at = |n: u64| tables.frames.get(Frame(from.0 + n), &tables.batches).map(|it| (it.state, it.vm()));
        let Some(first @ (state, vm)) = at(0) else {
            let (state, vm) = (FrameState::Leaked, VmId::default());
            return ok(FrameRun { start: from, count: 0, state, vm, owned_by_vm: false });
        };
        let count = 1 + (1..request.most.min(RUN_LIMIT)).take_while(|n| at(*n) == Some(first)).count() as u64;
        ok(FrameRun { start: from, count, state, vm: vm.unwrap_or_default(), owned_by_vm: vm.is_some() })
    }

    pub(super) fn frame_count(&self, _: &FrameCount) -> Answer {
        let [free, kernel, owned, private, firmware, quarantined, leaked] = self.tables().frames.counts();
        ok(FrameCounts { free, kernel, owned, private, firmware, quarantined, leaked })
    }

    pub(super) fn vm_create(&self, request: &VmCreate) -> Answer {
        // Under the lock, so that no VM is made for a handler that dies.
        let mut tables = self.tables();
        let handler = self.service(request.handler.index());
        ensure(handler.id.get() == request.handler && handler.is_alive(), Status::Dead)?;
        ensure(handler.is_vmm.get(), Status::Denied)?;
        let needed = match request.kind {
            VmKind::Plain => Features::empty(),
            VmKind::Sev | VmKind::SevEs => Features::SEV,
            VmKind::SevSnp => Features::SNP,
        };
        ensure(self.machine.features().contains(needed), Status::Unsupported)?;
        tables.frames.check_free(request.root, 1, &tables.batches)?;
        let mut unused = self.vms.iter().enumerate().filter(|(_, vm)| vm.state().is_none());
        let (slot, vm) = unused.next().ok_or(Status::Exhausted)?;
        let taken = |asid: &u32| tables.books.iter().any(|books| books.asid == *asid);
        // An encrypted VM gets one by `AsidBind`.
        let mut plain = (self.sev_asids().1 + 1..self.machine.asids().0).filter(|asid| !taken(asid));
        let asid = if request.kind == VmKind::Plain { plain.next().ok_or(Status::Exhausted)? } else { 0 };
        let (frames, _, books) = tables.of(slot)?;
        let id = vm.begin(slot, request.handler, request.root);
        *books = Books { kind: request.kind, asid, ..Books::new() };
        self.adopt(frames, books, request.root, 1, id);
        self.machine.log(Event::VmMade(id, request.handler));
        ok(VmCreated { vm: id })
    }

    pub(super) fn vm_destroy(&self, request: &VmDestroy) -> Answer {
        let _nothing_starts = self.tables();
        let (slot, vm) = vms::find(&self.vms, request.vm)?;
        vm.dying();
        self.stop_vcpus(slot);
        ok(Done {})
    }

    pub(super) fn vm_info(&self, request: &VmInfo) -> Answer {
        let tables = self.tables();
        let mut rest = self.vms.iter().zip(&tables.books).zip(1..).skip(request.slot.into());
        let ((vm, books), next) = rest.find(|((vm, _), _)| vm.state().is_some()).ok_or(Status::NotFound)?;
        let Books { kind, pages, kernel_frames, .. } = *books;
        let (id, handler, state) = (vm.id.get(), vm.handler.get(), vm.state().unwrap_or_default());
        let sequence = vm.invalidation.sequence();
        ok(VmReport { vm: id, handler, kind, state, pages, kernel_frames, next, sequence })
    }

    /// Makes free frames the kernel's, for a VM.
    fn adopt(&self, table: &FrameTable, books: &mut Books, first: Frame, count: u64, vm: VmId) {
        table.turn(first, count, FrameState::Free, Frames::of(FrameState::Kernel, vm));
        books.kernel_frames += count;
        (first.0..first.0 + count).for_each(|frame| self.machine.adopt(Frame(frame)));
    }

    pub(super) fn tables_donate(&self, request: &TablesDonate) -> Answer {
        let (slot, _) = self.alive(request.vm)?;
        let mut tables = self.tables();
        let (table, batches, books) = tables.of(slot)?;
        ensure((1..=(STOCK - books.stock.len()) as u64).contains(&request.count), Status::Range)?;
        table.check_free(request.frame, request.count, batches)?;
        self.adopt(table, books, request.frame, request.count, request.vm);
        let frames = request.frame.0..request.frame.0 + request.count;
        frames.for_each(|frame| books.stock.give_back(Frame(frame)));
        ok(Done {})
    }

    pub(super) fn vcpu_create(&self, request: &VcpuCreate) -> Answer {
        let (slot, vm) = self.alive(request.vcpu.vm)?;
        let index = usize::from(request.vcpu.index);
        ensure(usize::from(request.cpu.0) < self.cpu_count(), Status::Range)?;
        let root = vm.root(0).ok_or(Status::State)?;
        let mut tables = self.tables();
        let (table, batches, books) = tables.of(slot)?;
        let place = books.vcpus.get_mut(index).ok_or(Status::Range)?;
        ensure(place.is_none(), Status::State)?;
        table.check_free(request.frame, VCPU_FRAMES, batches)?;
        *place = Some(request.frame);
        self.adopt(table, books, request.frame, VCPU_FRAMES, request.vcpu.vm);
        let context = Context::vcpu(slot, index);
        self.machine.vcpu_create(context, vm.handler.get().index(), request.frame, books.asid, root);
        let state = self.context(context);
        state.home.store(request.cpu.0, Ordering::SeqCst);
        state.pending.store(0, Ordering::SeqCst);
        state.deadline.store(0, Ordering::SeqCst);
        state.phase.swap(Phase::Idle);
        vm.vcpus.fetch_or(1 << index, Ordering::AcqRel);
        ok(Done {})
    }

    pub(super) fn guest_map(&self, request: &GuestMap) -> Answer {
        let (slot, vm) = self.alive(request.vm)?;
        let GuestMap { gfn, frame, pages, access, .. } = *request;
        in_guest(gfn, pages, MAX_PAGES_PER_CALL)?;
        let root = vm.root(request.view).ok_or(Status::Range)?;
        let handler = vm.handler.get().index();
        let mut tables = self.tables();
        let (table, batches, books) = tables.of(slot)?;
        vm.invalidation.commit(request.sequence, gfn, pages)?;
        let clean = table.check_free(frame, pages, batches)?;
        ensure(books.stock.len() >= TABLES_PER_MAP, Status::Exhausted)?;
        // Before anybody can see them.
        if !clean {
            self.machine.zero(frame, pages);
            table.turn(frame, pages, FrameState::Free, Frames::free(true));
        }
        // The nested table refuses what is mapped already and changes nothing then.
        self.machine.nested_map(root, gfn, frame, pages, access, &mut books.stock)?;
        table.turn(frame, pages, FrameState::Free, Frames::of(FrameState::Owned, request.vm));
        books.pages += pages;
        // The window holds what view 0 holds, so nothing is there either.
        self.machine.window_map(handler, gfn, frame, pages, &mut books.stock)?;
        ok(Done {})
    }

    pub(super) fn guest_unmap(&self, request: &GuestUnmap) -> Answer {
        let (slot, vm) = vms::find(&self.vms, request.vm)?;
        in_guest(request.gfn, request.pages, GUEST_PAGES)?;
        let root = vm.root(request.view).ok_or(Status::Range)?;
        let handler = vm.handler.get().index();
        // So many in one go: nobody else gets to the tables meanwhile.
        let end = Gfn((request.gfn.0 + request.pages).min((request.gfn.0 | (UNMAP_SPAN - 1)) + 1));
        let mut tables = self.tables();
        let in_command = tables.is_in_command(request.vm);
        let (table, batches, books) = tables.of(slot)?;
        ensure(books.kind == VmKind::Plain || !in_command, Status::Busy)?;
        ensure(vm.state() == Some(VmState::Alive) || self.vcpus_idle(slot), Status::Busy)?;
        // A dying VM may have no table left to split a large page with.
        let cut = |gfn: Gfn| self.machine.nested_look_up(root, gfn).is_some_and(|it| !gfn.0.is_multiple_of(it.pages));
        ensure(vm.state() == Some(VmState::Alive) || !cut(request.gfn) && !cut(end), Status::Range)?;
        batches.check_room(books.kind)?;
        let mut taken = heapless::Vec::<(Frame, u64), { MAX_PAGES_PER_CALL as usize }>::new();
        let (mut pages, mut next, mut result) = (0, request.gfn, Ok(()));
        while result.is_ok() && pages < MAX_PAGES_PER_CALL && next < end {
            // Splitting a large page takes a table here and one in the window.
            if vm.state() == Some(VmState::Alive) && books.stock.len() < 2 {
                result = Err(Status::Exhausted);
                break;
            }
            match self.machine.nested_unmap(root, next, end, &mut books.stock) {
                Ok(Some(removed)) => {
                    next = Gfn(removed.gfn.0 + removed.pages);
                    pages += removed.pages;
                    result = self.machine.window_unmap(handler, removed.gfn, removed.pages, &mut books.stock);
                    // What its handler still sees stays the VM's. At most MAX_PAGES_PER_CALL steps of one page or more.
                    if result.is_ok() {
                        let _ = taken.push((removed.frame, removed.pages));
                    }
                }
                Ok(None) => next = end,
                Err(status) => result = Err(status),
            }
        }
        if pages == 0 {
            return result.and_then(|()| ok(Unmapped { batch: BatchId::default(), pages, next }));
        }
        books.pages = books.pages.saturating_sub(pages);
        self.machine.flush_translations();
        self.shoot_down(slot);
        let batch = batches.open(request.vm, books.kind, &self.owing(slot, books.kind), false)?;
        let (mut pages, mut waiting) = (0, 0);
        for frame in taken.iter().flat_map(|(first, count)| first.0..first.0 + count).map(Frame) {
            let from = table.get(frame, batches).map_or(FrameState::Owned, |frame| frame.state);
            let snp = books.kind == VmKind::SevSnp && from == FrameState::Private;
            // What the processor doesn't give back is nobody's any more.
            let given = !snp || self.machine.rmp_update(frame, Entry::SHARED).is_ok();
            if snp {
                self.machine.flush_lines(frame, 1, books.asid);
            }
            let to = if given { Frames::quarantined(batch) } else { Frames::plain(FrameState::Leaked) };
            table.turn(frame, 1, from, to);
            (pages, waiting) = (pages + 1, waiting + u64::from(given));
        }
        batches.join(batch, waiting);
        ok(Unmapped { batch, pages, next })
    }

    pub(super) fn guest_convert(&self, request: &GuestConvert) -> Answer {
        let mut tables = self.tables();
        let (slot, vm) = self.alive(request.vm)?;
        in_guest(request.gfn, request.pages, MAX_PAGES_PER_CALL)?;
        ensure(request.private || !tables.is_in_command(request.vm), Status::Busy)?;
        let (root, handler) = (vm.root(0).ok_or(Status::State)?, vm.handler.get().index());
        // One that it gave up may be another VM's by now.
        let has = |(_, asid): &(u32, &mut Asid)| matches!(asid.state, AsidState::Bound | AsidState::Active);
        let asid = tables.asids.of(request.vm).filter(has).map_or(0, |(asid, _)| asid);
        let (table, batches, books) = tables.of(slot)?;
        let snp = books.kind == VmKind::SevSnp;
        ensure(books.kind != VmKind::Plain && (asid != 0 || !snp && request.private), Status::State)?;
        let (from, to, needed) = match request.private {
            // At most two large pages have to be split for it.
            true => (FrameState::Owned, FrameState::Private, 2),
            false => (FrameState::Private, FrameState::Owned, TABLES_PER_MAP),
        };
        let mut frames = heapless::Vec::<Frame, { MAX_PAGES_PER_CALL as usize }>::new();
        for gfn in request.gfn.0..request.gfn.0 + request.pages {
            let mapping = self.machine.nested_look_up(root, Gfn(gfn)).ok_or(Status::State)?;
            ensure(table.get(mapping.frame, batches) == Some(Frames::of(from, request.vm)), Status::State)?;
            ensure(mapping.pages == 1 || !snp, Status::Range)?;
            let _ = frames.push(mapping.frame);
        }
        ensure(books.stock.len() >= needed, Status::Exhausted)?;
        if request.private {
            self.machine.window_unmap(handler, request.gfn, request.pages, &mut books.stock)?;
            self.machine.flush_translations();
        }
        let (mut turned, mut result) = (0, Ok(()));
        for (&frame, gfn) in frames.iter().zip(request.gfn.0..) {
            let entry = if request.private { Entry::guest(asid, Gfn(gfn), false) } else { Entry::SHARED };
            if request.private {
                self.machine.flush_lines(frame, 1, 0);
            }
            result = if snp { self.machine.rmp_update(frame, entry) } else { Ok(()) };
            if result.is_err() {
                break;
            }
            table.turn(frame, 1, from, Frames::of(to, request.vm));
            turned += 1;
        }
        if !request.private {
            // What the RMP allowed may be in translations; and what was dirtied by them, in lines: nobody flushes these later.
            self.shoot_down(slot);
            frames.iter().take(turned).for_each(|&frame| self.machine.flush_lines(frame, 1, asid));
            for (&frame, gfn) in frames.iter().take(turned).zip(request.gfn.0..) {
                result = result.and(self.machine.window_map(handler, Gfn(gfn), frame, 1, &mut books.stock));
            }
        }
        result.and_then(|()| ok(Done {}))
    }

    pub(super) fn frame_donate(&self, request: &FrameDonate) -> Answer {
        let tables = self.tables();
        ensure((1..=MAX_PAGES_PER_CALL).contains(&request.pages), Status::Range)?;
        tables.frames.check_free(request.frame, request.pages, &tables.batches)?;
        self.machine.flush_lines(request.frame, request.pages, 0);
        for frame in (request.frame.0..request.frame.0 + request.pages).map(Frame) {
            let given = self.machine.rmp_update(frame, Entry::FIRMWARE).is_ok();
            let to = if given { FrameState::Firmware } else { FrameState::Leaked };
            tables.frames.turn(frame, 1, FrameState::Free, Frames::plain(to));
        }
        ok(Done {})
    }

    /// Completes when no CPU uses a translation of the VM that was made before: every vCPU that was in its guest
    /// has left it, and each will flush before it enters again.
    fn shoot_down(&self, vm: usize) {
        let present = self.vms.get(vm).map_or(0, |vm| vm.vcpus.load(Ordering::Acquire));
        for index in (0..MAX_VCPUS).filter(|index| present >> index & 1 == 1) {
            self.context(Context::vcpu(vm, index)).make_stale();
            self.expel(Context::vcpu(vm, index));
        }
    }

    /// CPUs that may hold dirty lines of the VM's encrypted memory: those that ran it since they last wrote back.
    fn owing(&self, vm: usize, kind: VmKind) -> CpuSet {
        let owes = matches!(kind, VmKind::Sev | VmKind::SevEs);
        let ran = |cpu: &Shared| cpu.ran.load(Ordering::SeqCst) >> (vm % 64) & 1 == 1;
        let owing = self.cpus.iter().zip(0..).filter(|(cpu, _)| owes && ran(cpu));
        CpuSet::of(owing.map(|(_, number)| CpuId(number)))
    }

    pub(super) fn vm_release(&self, request: &VmRelease) -> Answer {
        let (slot, vm) = vms::find(&self.vms, request.vm)?;
        ensure(vm.state() == Some(VmState::Dying), Status::State)?;
        let mut tables = self.tables();
        let in_command = tables.is_in_command(request.vm);
        let (table, batches, books) = tables.of(slot)?;
        ensure(books.kind == VmKind::Plain || !in_command, Status::Busy)?;
        ensure(books.pages == 0 && self.vcpus_idle(slot), Status::Busy)?;
        let batch = batches.open(request.vm, VmKind::Plain, &CpuSet::EMPTY, false)?;
        let handler = vm.handler.get().index();
        let mut sink = Sink { machine: self.machine, table, batch, count: 0 };
        for (index, place) in books.vcpus.iter_mut().enumerate() {
            if let Some(first) = place.take() {
                self.machine.vcpu_drop(Context::vcpu(slot, index), handler);
                for frame in first.0..first.0 + VCPU_FRAMES {
                    sink.give_back(Frame(frame));
                }
            }
        }
        self.machine.window_drop(handler, &mut sink);
        for view in 0..MAX_VIEWS as u8 {
            if let Some(root) = vm.root(view) {
                self.machine.nested_drop(root, &mut sink);
            }
        }
        while let Some(frame) = books.stock.pop() {
            sink.give_back(frame);
        }
        let pages = sink.count;
        self.machine.flush_translations();
        batches.join(batch, pages);
        *books = Books::new();
        let tickets = tables.tickets;
        if let Some((_, asid)) = tables.asids.of(request.vm).filter(|(_, asid)| asid.state == AsidState::Bound) {
            asid.deactivate(tickets);
        }
        vm.end();
        self.machine.log(Event::VmGone(request.vm));
        ok(Unmapped { batch, pages, next: Gfn(0) })
    }
}

/// Takes a dead VM's kernel frames: unmaps them and puts them into a batch.
struct Sink<'a, M: Machine> {
    machine: M,
    table: &'a FrameTable,
    batch: BatchId,
    count: u64,
}

impl<M: Machine> TablePool for Sink<'_, M> {
    fn take(&mut self) -> Option<Frame> {
        None
    }
    fn give_back(&mut self, frame: Frame) {
        self.machine.disown(frame);
        self.table.turn(frame, 1, FrameState::Kernel, Frames::quarantined(self.batch));
        self.count += 1;
    }
}
