//! Memory that a living VM gives back, and takes again.

use caisson_proto::abi::{MAX_PAGES_PER_CALL, Status};
use caisson_proto::addr::{Gfn, ServiceId, VmId};
use caisson_proto::kernel::{GuestUnmap, Unmapped};
use caisson_proto::memory::GiveBack;

use crate::{Kernel, Memory, own, reclaim, unpromised, vm_report};

impl Memory {
    pub(crate) fn give_back(
        &mut self, sender: ServiceId, request: &GiveBack, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let GiveBack { vm, gfn, pages } = *request;
        if pages == 0 || pages > MAX_PAGES_PER_CALL {
            return Err(Status::Range);
        }
        own(vm, sender, kernel)?;
        self.unmap(&GuestUnmap { vm, view: 0, gfn, pages, more: false, broken: false }, kernel).map(|_| ())
    }

    /// Takes pages from a living VM, as many as the kernel takes in one go, which it may populate again.
    pub(crate) fn unmap(&mut self, unmap: &GuestUnmap, kernel: &mut impl Kernel) -> Result<Unmapped, Status> {
        let mut unmap = *unmap;
        let mut answer = kernel.ask(&unmap);
        if answer == Err(Status::Busy) && unmap.more {
            // No batch is left for the event alone: it has a shootdown for each call then.
            unmap.more = false;
            answer = kernel.ask(&unmap);
        }
        if answer == Err(Status::Exhausted) {
            // Large pages are split.
            self.donate(unmap.vm, kernel)?;
            answer = kernel.ask(&unmap);
        }
        let unmapped = answer?;
        self.took(unmap.vm, unmapped.pages, 1, u64::from(unmapped.pages > 0 && !unmap.more));
        reclaim::tell(unmap.vm, unmap.gfn, &unmapped, unmap.more, kernel);
        Ok(unmapped)
    }

    /// Has the one shootdown of an event, if it wasn't yet.
    pub(crate) fn end_event(&mut self, vm: VmId, gfn: Gfn, kernel: &mut impl Kernel) {
        let flushed = reclaim::end_event(vm, gfn, kernel);
        self.counts.took(vm, 0, 0, u64::from(flushed));
    }

    /// So many pages left a living VM, for which the kernel was asked so often and had to shoot so many times.
    pub(crate) fn took(&mut self, vm: VmId, pages: u64, requests: u64, flushes: u64) {
        self.counts.took(vm, pages, requests, flushes);
        self.stale |= pages > 0;
        self.promises.set_given(vm, self.promises.given(vm).saturating_add(pages));
    }

    /// Pages that a VM which has so many may have more: what it was promised, and of what it gave back as much as nobody else was
    /// promised. Without a promise, as after a restart: what nobody was.
    pub(crate) fn budget(&self, vm: VmId, has: u64, kernel: &mut impl Kernel) -> Result<u64, Status> {
        let (promised, given) = (self.promises.pages(vm), self.promises.given(vm));
        let firm = promised.unwrap_or(0).saturating_sub(given).saturating_sub(has);
        if promised.is_some() && given == 0 {
            return Ok(firm);
        }
        let unpromised = unpromised(&self.promises, kernel)?;
        Ok(if promised.is_some() { firm.saturating_add(given.min(unpromised)) } else { unpromised })
    }

    /// Promises a VM more of the memory that it may have, as far as nobody else was promised that.
    pub(crate) fn promise(
        &mut self, sender: ServiceId, vm: VmId, pages: u64, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        own(vm, sender, kernel)?;
        if unpromised(&self.promises, kernel)? < pages {
            // Balloons may hold what is lacking.
            self.short(kernel);
            return Err(Status::Exhausted);
        }
        // After a restart there is no promise to add to: such a VM gets what nobody else was promised.
        match self.promises.pages(vm) {
            Some(_) => self.promises.shift(vm, pages, true).ok_or(Status::Range),
            None => Ok(()),
        }
    }

    /// Promises a VM less.
    pub(crate) fn unpromise(
        &mut self, sender: ServiceId, vm: VmId, pages: u64, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let report = own(vm, sender, kernel)?;
        let firm = self.promises.pages(vm).unwrap_or(0).saturating_sub(self.promises.given(vm));
        let _ = self.promises.shift(vm, pages.min(firm.saturating_sub(report.pages)), false);
        Ok(())
    }

    /// A VM populated pages: what it gave back is no more than what it lacks.
    pub(crate) fn regain(&mut self, vm: VmId, kernel: &mut impl Kernel) {
        let (Some(promised), given) = (self.promises.pages(vm), self.promises.given(vm)) else { return };
        if given > 0
            && let Ok(report) = vm_report(vm, kernel)
        {
            self.promises.set_given(vm, given.min(promised.saturating_sub(report.pages)));
        }
    }
}
