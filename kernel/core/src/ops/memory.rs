//! Operations on frames and VMs.

use super::{Answer, Call, ok};
use crate::prelude::*;

/// Frames that one look at the table covers at the most.
const RUN_LIMIT: u64 = 1 << 15;
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

    pub(super) fn vm_release(&self, request: &VmRelease) -> Answer {
        let (slot, vm) = vms::find(&self.vms, request.vm)?;
        ensure(vm.state() == Some(VmState::Dying), Status::State)?;
        let mut tables = self.tables();
        let in_command = tables.is_in_command(request.vm);
        let (table, batches, books) = tables.of(slot)?;
        ensure(books.kind == VmKind::Plain || !in_command, Status::Busy)?;
        ensure(books.pages == 0 && self.vcpus_idle(slot), Status::Busy)?;
        ensure(batches.held(request.vm).is_none(), Status::Busy)?;
        let batch = batches.open(request.vm, VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack)?;
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
        ok(Unmapped { batch, pages, next: Gfn(0), waiting: pages })
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
