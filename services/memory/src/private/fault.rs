//! A guest's private pages come when they are needed: at a fault, or with contents.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Gfn, PAGE_SIZE, ServiceId, VPage};
use caisson_proto::kernel::{FrameState, GuestMap, GuestUnmap, VmKind, VmReport};
use caisson_proto::memory::{Fill, Filled};

use super::{is_there, look};
use crate::make::{ATTEMPTS, still_free};
use crate::slots::Shown;
use crate::{Kernel, Memory, lacking, own, vm_report};

// A page is lent as it is.
const _: () = assert!(PAGE_SIZE == 4096);

impl Memory {
    /// Whether the memory behind any of these pages is broken, or they are wanted otherwise than the guest reached for them.
    ///
    /// # Errors
    /// `Poisoned`, `State`.
    pub(crate) fn may_be(
        &self, report: &VmReport, gfn: Gfn, shown: &Shown, pages: u64, private: bool,
    ) -> Result<(), Status> {
        if self.gmems.count_private(report.vm, &(gfn.0..gfn.0 + pages)) != if private { pages } else { 0 } {
            return Err(Status::State);
        }
        let broken = shown.gmem.is_some_and(|at| self.gmems.any_poisoned(at, pages));
        if broken { Err(Status::Poisoned) } else { Ok(()) }
    }

    /// Sees to it that pages are there and the guest's alone, at each fault: what is so already is left alone. One that stopped
    /// half-way is gone on with by the next.
    pub(crate) fn prepare(
        &mut self, report: &VmReport, gfn: Gfn, shown: &Shown, pages: u64, budget: &mut u64, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let (mut at, end) = (gfn.0, gfn.0 + pages);
        while at < end {
            let found = look(report.vm, Gfn(at), end - at, kernel)?;
            if !is_there(&found) {
                self.fill(report, Gfn(at), found.pages, shown.access(), budget, kernel)?;
            }
            if found.state != FrameState::Private {
                self.turn(report.vm, Gfn(at), found.pages, true, kernel)?;
            }
            at += found.pages;
        }
        Ok(())
    }

    /// Private pages with the contents of those that the caller lends, which it can't change meanwhile. A page has contents only
    /// when all went well.
    pub(crate) fn fill_private(
        &mut self, sender: ServiceId, request: &Fill, lease: Option<Lease>, kernel: &mut impl Kernel,
    ) -> Result<Filled, Status> {
        let Fill { vm, gfn, pages } = *request;
        let report = own(vm, sender, kernel)?;
        let lease = lease.filter(|lease| (1..=lease.pages).contains(&pages)).ok_or(Status::BadLease)?;
        if report.kind != VmKind::Plain {
            // Only the processor can give it contents, at its launch.
            return Err(Status::Unsupported);
        }
        for done in 0..pages {
            let page = gfn.0.checked_add(done).map(Gfn).ok_or(Status::Range);
            let source = Lease { page: VPage(lease.page.0 + done), pages: 1, write: false };
            let filled = page.and_then(|gfn| self.fill_one(&report, gfn, source, kernel));
            if let Err(status) = filled {
                return if done > 0 { Ok(Filled { pages: done }) } else { Err(status) };
            }
        }
        Ok(Filled { pages })
    }

    fn fill_one(&mut self, report: &VmReport, gfn: Gfn, source: Lease, kernel: &mut impl Kernel) -> Result<(), Status> {
        let vm = report.vm;
        let shown = self.with_gmem(vm, gfn)?;
        self.may_be(report, gfn, &shown, 1, true)?;
        if is_there(&look(vm, gfn, 1, kernel)?) {
            return Err(Status::Exists);
        }
        let now = vm_report(vm, kernel)?;
        if self.budget(vm, now.pages, kernel)? == 0 {
            return Err(Status::Exhausted);
        }
        for _ in 0..ATTEMPTS {
            let sequence = vm_report(vm, kernel)?.sequence;
            let frame = self.take(1, kernel).ok_or_else(|| lacking(kernel))?;
            let map = GuestMap { vm, view: 0, gfn, frame, pages: 1, access: shown.access(), sequence };
            let refused = match kernel.lend(&map, source) {
                Ok(_) => {
                    self.regain(vm, kernel);
                    return self.turn(vm, gfn, 1, true, kernel).inspect_err(|_| self.unfill(vm, gfn, kernel));
                }
                Err(refused) => refused,
            };
            if refused == Status::State && !still_free(frame, 1, kernel) {
                self.rescan(kernel);
                continue;
            }
            self.pool.give_back(frame, 1);
            match refused {
                Status::Exhausted => self.donate(vm, kernel)?,
                Status::Stale => {}
                status => return Err(status),
            }
        }
        Err(Status::Busy)
    }

    /// Contents that didn't become the guest's don't stay.
    fn unfill(&mut self, vm: caisson_proto::addr::VmId, gfn: Gfn, kernel: &mut impl Kernel) {
        let _ = self.unmap(&GuestUnmap { vm, view: 0, gfn, pages: 1, more: false, broken: false }, kernel);
    }
}
