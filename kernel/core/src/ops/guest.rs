//! Operations on what a guest sees of memory.

use super::{Answer, Call, ok};
use crate::prelude::*;

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
        if let Some(lease) = self.lease {
            table.turn(frame, pages, FrameState::Free, Frames::free(false));
            for n in 0..pages {
                self.machine.copy((lease.page.0 + n) * PAGE_SIZE, Frame(frame.0 + n).spa(), PAGE_SIZE, false)?;
            }
        } else if !clean {
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
        in_guest(request.gfn, request.pages.max(1), GUEST_PAGES)?;
        let root = vm.root(request.view).ok_or(Status::Range)?;
        let handler = vm.handler.get().index();
        // So many in one go: nobody else gets to the tables meanwhile.
        let end = Gfn((request.gfn.0 + request.pages).min((request.gfn.0 | (UNMAP_SPAN - 1)) + 1));
        let mut tables = self.tables();
        let in_command = tables.is_in_command(request.vm);
        let (table, batches, books) = tables.of(slot)?;
        let (kind, snp) = (books.kind, books.kind == VmKind::SevSnp);
        ensure(kind == VmKind::Plain || !in_command || request.pages == 0, Status::Busy)?;
        ensure(vm.state() == Some(VmState::Alive) || self.vcpus_idle(slot), Status::Busy)?;
        // A dying VM may have no table left to split a large page with.
        let cut = |gfn: Gfn| self.machine.nested_look_up(root, gfn).is_some_and(|it| !gfn.0.is_multiple_of(it.pages));
        let cuts = request.pages > 0 && (cut(request.gfn) || cut(end));
        ensure(vm.state() == Some(VmState::Alive) || !cuts, Status::Range)?;
        ensure(!snp || !cuts || books.stock.len() >= 4, Status::Exhausted)?;
        // The RMP forgets what the host took only after the shootdown.
        let more = request.more && !snp;
        let payable = if more { Payable::Never } else { Payable::WriteBack };
        let held = batches.held(request.vm).filter(|_| !more);
        held.map_or_else(|| batches.place(request.vm, kind, payable).map(drop), |_| Ok(()))?;
        let last = Gfn(end.0 & !(LARGE_PAGES - 1));
        let mut taken = heapless::Vec::<(Frame, u64), { MAX_PAGES_PER_CALL as usize }>::new();
        let (mut pages, mut next, mut result) = (0, request.gfn, Ok(()));
        while result.is_ok() && pages < MAX_PAGES_PER_CALL && next < end {
            // Splitting a large page takes a table here and one in the window.
            if vm.state() == Some(VmState::Alive) && books.stock.len() < 2 {
                result = Err(Status::Exhausted);
                break;
            }
            // Only what is about to be split; what is shared has no entry.
            let stop = if next < last { last } else { end };
            let splits =
                |it: &Mapping| it.pages > 1 && (!next.0.is_multiple_of(it.pages) || next.0 + it.pages > stop.0);
            if snp && let Some(it) = self.machine.nested_look_up(root, next).filter(splits) {
                let _ = self.machine.rmp_smash(it.frame);
            }
            match self.machine.nested_unmap(root, next, stop, &mut books.stock) {
                Ok(Some(removed)) => {
                    next = Gfn(removed.gfn.0 + removed.pages);
                    pages += removed.pages;
                    result = self.machine.window_unmap(handler, removed.gfn, removed.pages, &mut books.stock);
                    // What its handler still sees stays the VM's. At most MAX_PAGES_PER_CALL steps of one page or more.
                    if result.is_ok() {
                        let _ = taken.push((removed.frame, removed.pages));
                    }
                }
                Ok(None) => next = stop,
                Err(status) => result = Err(status),
            }
        }
        if pages == 0 && held.is_none() {
            return result.and_then(|()| ok(Unmapped { batch: BatchId::default(), pages, next, waiting: 0 }));
        }
        books.pages = books.pages.saturating_sub(pages);
        let mut owed = CpuSet::EMPTY;
        if !more {
            self.machine.flush_translations();
            self.shoot_down(slot);
            owed = self.owing(slot, kind);
        }
        let batch = held.map_or_else(|| batches.open(request.vm, kind, &owed, payable), Ok)?;
        let (mut pages, mut waiting) = (0, 0);
        for &(first, count) in &taken {
            let state = |frame| table.get(frame, batches).map_or(FrameState::Owned, |frame| frame.state);
            let assigned = snp && state(first) == FrameState::Private;
            // What the processor doesn't give back is nobody's any more, nor what is broken.
            let freed = !assigned || self.machine.rmp_update(first, Entry::SHARED.sized(count)).is_ok();
            if assigned {
                self.machine.flush_lines(first, count, books.asid);
            }
            let given = freed && !request.broken;
            let to = if given { Frames::quarantined(batch) } else { Frames::plain(FrameState::Leaked) };
            let frames = (first.0..first.0 + count).map(Frame);
            frames.for_each(|frame| table.turn(frame, 1, state(frame), to));
            (pages, waiting) = (pages + count, waiting + count * u64::from(given));
        }
        batches.join(batch, waiting);
        if held.is_some() {
            waiting = batches.release(batch, &owed);
        }
        ok(Unmapped { batch, pages, next, waiting: if more { 0 } else { waiting } })
    }

    pub(super) fn guest_look(&self, request: &GuestLook) -> Answer {
        let (slot, vm) = vms::find(&self.vms, request.vm)?;
        in_guest(request.gfn, request.pages, MAX_PAGES_PER_CALL)?;
        let root = vm.root(0).ok_or(Status::State)?;
        let mut tables = self.tables();
        let (table, batches, _) = tables.of(slot)?;
        let found = |gfn| self.machine.nested_look_up(root, Gfn(gfn));
        let what = |it: Option<Mapping>| it.and_then(|it| Some((table.get(it.frame, batches)?.state, it.pages)));
        let first = found(request.gfn.0);
        let rest = request.gfn.0 + 1..request.gfn.0 + request.pages;
        let pages = 1 + rest.take_while(|gfn| what(found(*gfn)) == what(first)).count() as u64;
        let (state, span) = what(first).unwrap_or((FrameState::Free, 0));
        ok(Look { pages, state, span, frame: first.map_or(Frame(0), |it| it.frame) })
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
        // A plain VM's pages are no affair of the firmware's.
        let plain = books.kind == VmKind::Plain && self.service(self.slot).caps.get().contains(Caps::FRAMES);
        ensure(plain || books.kind != VmKind::Plain && (asid != 0 || !snp && request.private), Status::State)?;
        let (from, to, needed) = match request.private {
            // At most two large pages have to be split for it, here and in the window.
            true => (FrameState::Owned, FrameState::Private, 4),
            false => (FrameState::Private, FrameState::Owned, TABLES_PER_MAP + 2),
        };
        ensure(books.stock.len() >= needed, Status::Exhausted)?;
        let found = |gfn| table.get(self.machine.nested_look_up(root, Gfn(gfn))?.frame, batches);
        let mut all = request.gfn.0..request.gfn.0 + request.pages;
        ensure(all.all(|gfn| found(gfn) == Some(Frames::of(from, request.vm))), Status::State)?;
        let whole = request.large && request.pages == LARGE_PAGES && request.gfn.0.is_multiple_of(LARGE_PAGES);
        // While the RMP has no entries for them, pages may be joined. Their table goes to the stock.
        let joins = whole && books.stock.len() < STOCK;
        if joins && request.private && self.machine.nested_resize(root, request.gfn, true, &mut books.stock).is_ok() {
            // Before the table that was joined serves for something else.
            self.shoot_down(slot);
        }
        let mut pieces = heapless::Vec::<(Gfn, Frame, u64), { MAX_PAGES_PER_CALL as usize }>::new();
        let (mut gfn, end) = (request.gfn, request.gfn.0 + request.pages);
        while gfn.0 < end {
            let mapping = self.machine.nested_look_up(root, gfn).ok_or(Status::State)?;
            let pages = if whole { mapping.pages } else { 1 };
            // The kernel's and the RMP's idea of a page's size are the same.
            if snp && mapping.pages != pages {
                ensure(self.machine.rmp_smash(mapping.frame).is_ok() || request.private, Status::State)?;
                self.machine.nested_resize(root, gfn, false, &mut books.stock)?;
            }
            let _ = pieces.push((gfn, mapping.frame, pages));
            gfn.0 += pages;
        }
        if request.private {
            self.machine.window_unmap(handler, request.gfn, request.pages, &mut books.stock)?;
            self.machine.flush_translations();
        }
        let (mut turned, mut result) = (0, Ok(()));
        for &(gfn, frame, pages) in &pieces {
            let entry = if request.private { Entry::guest(asid, gfn, false) } else { Entry::SHARED };
            if request.private {
                self.machine.flush_lines(frame, pages, 0);
            }
            result = if snp { self.machine.rmp_update(frame, entry.sized(pages)) } else { Ok(()) };
            if result.is_err() {
                break;
            }
            table.turn(frame, pages, from, Frames::of(to, request.vm));
            turned += 1;
        }
        if !request.private {
            if joins && result.is_ok() {
                let _ = self.machine.nested_resize(root, request.gfn, true, &mut books.stock);
            }
            // What the RMP allowed may be in translations; and what was dirtied by them, in lines: nobody flushes these later.
            self.shoot_down(slot);
            let turned = || pieces.iter().take(turned);
            turned().for_each(|&(_, frame, pages)| self.machine.flush_lines(frame, pages, asid));
            for &(gfn, frame, pages) in turned() {
                result = result.and(self.machine.window_map(handler, gfn, frame, pages, &mut books.stock));
            }
        }
        result.and_then(|()| ok(Done {}))
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
}
