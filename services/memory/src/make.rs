//! Making VMs and giving them memory.

use caisson_proto::abi::{MAX_PAGES_PER_CALL, MAX_VCPUS, Status};
use caisson_proto::addr::{CpuId, Frame, Gfn, LARGE_PAGES, ServiceId, VcpuId, VmId};
use caisson_proto::kernel::{
    Access, FrameRuns, FrameState, GuestMap, GuestUnmap, TablesDonate, VCPU_FRAMES, VcpuCreate, VmCreate, VmDestroy,
    VmKind, VmReport, VmState,
};
use caisson_proto::memory::{Populate, VmMade, VmMake};
use heapless::Vec;

use crate::promise::overhead;
use crate::{Kernel, Memory, lacking, own, reclaim, unpromised, vm_report, vms};

/// Table frames given at a time, or fewer where they don't lie in a row.
const DONATION: u64 = 16;
/// How often one mapping is tried: with new tables, a new sequence, or other frames.
pub(crate) const ATTEMPTS: usize = 16;
/// Ranges that wait while one of at most 512 pages is halved.
const HALVES: usize = 16;

/// What became of a range.
enum Mapped {
    /// All of it is mapped now.
    New,
    /// Something was mapped there before; nothing was done.
    Before,
    /// No run of free frames is that long; nothing was done.
    NoRun,
}

impl Memory {
    pub(crate) fn vm_make(
        &mut self, sender: ServiceId, request: &VmMake, kernel: &mut impl Kernel,
    ) -> Result<VmMade, Status> {
        let VmMake { kind, vcpus, pages, promised, first_cpu, lowest_cpu } = *request;
        let cpus = lowest_cpu.0..self.cpus;
        let vcpus_fit = (1..=MAX_VCPUS).contains(&vcpus.into());
        if !vcpus_fit || pages == 0 || promised > pages || !cpus.contains(&first_cpu.0) {
            return Err(Status::Range);
        }
        // One that is dying is in its window still, and takes the window's tables along.
        match vms(kernel).find(|report| report.handler == sender).map(|report| report.state) {
            Some(VmState::Alive) => return Err(Status::State),
            Some(_) => return Err(Status::Busy),
            None => {}
        }
        let needed = promised.checked_add(overhead(pages, vcpus)).ok_or(Status::Exhausted)?;
        if needed > unpromised(&self.promises, kernel)? {
            return Err(Status::Exhausted);
        }
        let root = self.take(1, kernel).ok_or_else(|| lacking(kernel))?;
        let vm = match kernel.ask(&VmCreate { handler: sender, kind, root }) {
            Ok(created) => created.vm,
            Err(status) => {
                self.pool.give_back(root, 1);
                return Err(status);
            }
        };
        self.promises.make(vm, pages, promised, vcpus);
        let before = usize::from(first_cpu.0 - lowest_cpu.0);
        let mut vcpus = (0..vcpus).zip(cpus.cycle().skip(before));
        let shown = self.show(vm);
        let made =
            shown.and_then(|()| vcpus.try_for_each(|(index, cpu)| self.vcpu(VcpuId { vm, index }, CpuId(cpu), kernel)));
        if let Err(status) = made {
            // What was given to it comes back as from any dead VM.
            let _ = kernel.ask(&VmDestroy { vm });
            self.reclaim(kernel);
            return Err(status);
        }
        Ok(VmMade { vm })
    }

    fn vcpu(&mut self, vcpu: VcpuId, cpu: CpuId, kernel: &mut impl Kernel) -> Result<(), Status> {
        for _ in 0..ATTEMPTS {
            let frame = self.take(VCPU_FRAMES, kernel).ok_or_else(|| lacking(kernel))?;
            match kernel.ask(&VcpuCreate { vcpu, cpu, frame }) {
                Ok(_) => return Ok(()),
                Err(Status::Exhausted) => {
                    self.pool.give_back(frame, VCPU_FRAMES);
                    self.donate(vcpu.vm, kernel)?;
                }
                Err(Status::State) if !still_free(frame, VCPU_FRAMES, kernel) => self.rescan(kernel),
                Err(status) => {
                    self.pool.give_back(frame, VCPU_FRAMES);
                    return Err(status);
                }
            }
        }
        Err(Status::Busy)
    }

    /// Gives table frames to a VM.
    pub(crate) fn donate(&mut self, vm: VmId, kernel: &mut impl Kernel) -> Result<(), Status> {
        let mut given = 0;
        let mut count = DONATION;
        while given < DONATION && count > 0 {
            let Some(frame) = self.take(count, kernel) else {
                count /= 2;
                continue;
            };
            if let Err(status) = kernel.ask(&TablesDonate { vm, frame, count }) {
                self.pool.give_back(frame, count);
                return Err(status);
            }
            given += count;
        }
        if given > 0 { Ok(()) } else { Err(lacking(kernel)) }
    }

    pub(crate) fn populate(
        &mut self, sender: ServiceId, request: &Populate, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let Populate { vm, gfn, pages, private } = *request;
        if pages == 0 || pages > MAX_PAGES_PER_CALL || gfn.0.checked_add(pages).is_none() {
            return Err(Status::Range);
        }
        let report = own(vm, sender, kernel)?;
        // All of it has to be shown before anything is mapped, and as the guest reached for it.
        let (mut at, end) = (gfn.0, gfn.0 + pages);
        while at < end {
            let shown = self.shown(vm, Gfn(at))?;
            let pages = shown.pages.min(end - at);
            if private && shown.gmem.is_none() {
                return Err(Status::NotFound);
            }
            if shown.gmem.is_some() {
                self.may_be(&report, Gfn(at), &shown, pages, private)?;
            }
            at += pages;
        }
        let mut budget = self.budget(vm, report.pages, kernel)?;
        self.notice(vm, report.pages, kernel);
        let mut at = gfn.0;
        while at < end {
            let shown = self.shown(vm, Gfn(at))?;
            let pages = shown.pages.min(end - at);
            let filled = if private {
                self.prepare(&report, Gfn(at), &shown, pages, &mut budget, kernel)
            } else {
                self.fill(&report, Gfn(at), pages, shown.access(), &mut budget, kernel)
            };
            if let Err(status) = filled {
                if status == Status::Exhausted {
                    self.refused(vm, kernel);
                }
                return Err(status);
            }
            at += pages;
        }
        self.keep_reserve(kernel);
        Ok(())
    }

    /// Backs a range that one slot shows, as far as it isn't yet, with at most `budget` new pages.
    pub(crate) fn fill(
        &mut self, report: &VmReport, gfn: Gfn, pages: u64, access: Access, budget: &mut u64, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let vm = report.vm;
        // A range that can't be mapped in one piece is halved.
        let mut todo = Vec::<(Gfn, u64), HALVES>::new();
        let mut next = Some((gfn, pages));
        while let Some((gfn, pages)) = next {
            // What is launched is measured in pages of 4 KiB, so none may be large.
            if pages == LARGE_PAGES && report.kind == VmKind::SevSnp && !self.gmems.is_private(vm, gfn) {
                let half = pages / 2;
                todo.push((Gfn(gfn.0 + half), half)).map_err(|_| Status::Range)?;
                next = Some((gfn, half));
                continue;
            }
            match self.map(vm, gfn, pages, access, kernel)? {
                Mapped::New if pages <= *budget => {
                    *budget -= pages;
                    self.regain(vm, kernel);
                }
                Mapped::New => {
                    // Only now is it known that these pages weren't there before.
                    undo(vm, gfn, pages, kernel);
                    self.stale = true;
                    return Err(Status::Exhausted);
                }
                Mapped::Before | Mapped::NoRun if pages > 1 => {
                    let half = pages / 2;
                    let rest = (Gfn(gfn.0 + half), pages - half);
                    todo.push(rest).map_err(|_| Status::Range)?;
                    next = Some((gfn, half));
                    continue;
                }
                Mapped::Before => {}
                Mapped::NoRun => return Err(lacking(kernel)),
            }
            next = todo.pop();
        }
        Ok(())
    }

    /// Maps one range with frames in a row, if nothing of it is mapped.
    fn map(
        &mut self, vm: VmId, gfn: Gfn, pages: u64, access: Access, kernel: &mut impl Kernel,
    ) -> Result<Mapped, Status> {
        for _ in 0..ATTEMPTS {
            let sequence = vm_report(vm, kernel)?.sequence;
            let Some(frame) = self.take(pages, kernel) else { return Ok(Mapped::NoRun) };
            match kernel.ask(&GuestMap { vm, view: 0, gfn, frame, pages, access, sequence }) {
                Ok(_) => return Ok(Mapped::New),
                Err(Status::State) if !still_free(frame, pages, kernel) => {
                    self.rescan(kernel);
                    continue;
                }
                refused => {
                    self.pool.give_back(frame, pages);
                    match refused {
                        Err(Status::State) => {
                            let alive = vm_report(vm, kernel)?.state == VmState::Alive;
                            return if alive { Ok(Mapped::Before) } else { Err(Status::State) };
                        }
                        Err(Status::Exhausted) => self.donate(vm, kernel)?,
                        Err(Status::Stale) | Ok(_) => {}
                        Err(status) => return Err(status),
                    }
                }
            }
        }
        Err(Status::Busy)
    }
}

/// Takes pages back that were mapped a moment ago.
fn undo(vm: VmId, gfn: Gfn, pages: u64, kernel: &mut impl Kernel) {
    if let Ok(unmapped) = kernel.ask(&GuestUnmap { vm, view: 0, gfn, pages, more: false, broken: false }) {
        reclaim::tell(vm, gfn, &unmapped, false, kernel);
    }
}

/// Whether the kernel holds all these frames for free.
pub(crate) fn still_free(frame: Frame, count: u64, kernel: &mut impl Kernel) -> bool {
    let run = kernel.ask(&FrameRuns { from: frame, most: count });
    run.is_ok_and(|run| run.state == FrameState::Free && run.count >= count)
}
