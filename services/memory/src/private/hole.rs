//! Private memory goes back, or breaks.

use caisson_proto::abi::{MAX_PAGES_PER_CALL, Status};
use caisson_proto::addr::{Gfn, ServiceId, VmId};
use caisson_proto::kernel::{FrameState, GuestUnmap};
use caisson_proto::memory::{Poison, Punch, Punched};

use super::look;
use crate::gmem::Error;
use crate::slots::OPERATIONS;
use crate::{Kernel, Memory, own};

impl Memory {
    /// Takes what is private behind pages of a gmem, in one event however many slots show them.
    pub(crate) fn punch(
        &mut self, sender: ServiceId, request: &Punch, kernel: &mut impl Kernel,
    ) -> Result<Punched, Status> {
        let Punch { vm, at, pages } = *request;
        own(vm, sender, kernel)?;
        let all = self.gmems.of(vm, at.gmem).map_err(Error::status)?;
        let end = at.page.checked_add(pages).filter(|_| pages > 0).ok_or(Status::Invalid)?;
        // What lies past the gmem's end isn't there.
        let last = end.min(all);
        let (mut page, mut taken, mut first, mut failed) = (at.page, 0, None, None);
        for _ in 0..OPERATIONS {
            let next = self.gmems.bound(at.gmem, &(page..last)).next().copied().filter(|_| page < last);
            let Some(binding) = next else {
                page = end;
                break;
            };
            page = page.max(binding.at.page);
            let gfn = Gfn(binding.gfn.0 + page - binding.at.page);
            let count = last.min(binding.at.page + binding.pages) - page;
            match self.take_private(vm, gfn, count.min(MAX_PAGES_PER_CALL - taken), kernel) {
                Ok((passed, more)) => {
                    (page, taken) = (page + passed, taken + more);
                    first = first.or((more > 0).then_some(gfn));
                }
                Err(status) => failed = Some(status),
            }
            if taken >= MAX_PAGES_PER_CALL || failed.is_some() {
                break;
            }
        }
        if let Some(gfn) = first {
            self.end_event(vm, gfn, kernel);
        }
        self.gmems.heal(at.gmem, &(at.page..page.min(all)));
        match failed {
            Some(status) if page == at.page => Err(status),
            _ => Ok(Punched { pages: page - at.page }),
        }
    }

    /// Unmaps the first of these pages and those that are like it, if they are private: how many those are, and how many went.
    fn take_private(&mut self, vm: VmId, gfn: Gfn, pages: u64, kernel: &mut impl Kernel) -> Result<(u64, u64), Status> {
        let found = look(vm, gfn, pages, kernel)?;
        if found.state != FrameState::Private {
            return Ok((found.pages, 0));
        }
        let unmap = GuestUnmap { vm, view: 0, gfn, pages: found.pages, more: true, broken: false };
        let unmapped = self.unmap(&unmap, kernel)?;
        Ok((unmapped.next.0 - gfn.0, unmapped.pages))
    }

    /// The memory behind a guest frame is broken: nobody sees it any more, and it is never used again.
    pub(crate) fn poison(
        &mut self, sender: ServiceId, request: &Poison, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let Poison { vm, gfn } = *request;
        own(vm, sender, kernel)?;
        let at = self.with_gmem(vm, gfn)?.gmem.ok_or(Status::NotFound)?;
        self.gmems.poison(at).map_err(Error::status)?;
        let unmap = GuestUnmap { vm, view: 0, gfn, pages: 1, more: false, broken: true };
        self.unmap(&unmap, kernel).map(|_| ()).inspect_err(|_| self.gmems.heal(at.gmem, &(at.page..at.page + 1)))
    }
}
