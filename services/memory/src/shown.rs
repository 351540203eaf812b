//! Slots as their VM's handler asks for them.
//!
//! Each VM has a region of its own, which is as long as its handler's window on the guest and which a slot shows as a whole, with a
//! gmem of the same length, until the handler divides it. Pages have frames only where they are shown: what is deleted or moved is
//! given back, and comes empty elsewhere. memory is the only one that maps, and it asks the slots first; so a change that takes several
//! calls needs no one else's help to be closed to faults.

use caisson_proto::abi::{MAX_PAGES_PER_CALL, Status};
use caisson_proto::addr::{Gfn, ServiceId, VmId};
use caisson_proto::kernel::{FrameState, GuestUnmap};
use caisson_proto::layout;
use caisson_proto::memory::{Discard, Progress, SlotFlags, SlotInfo, SlotReport, SlotSet};
use caisson_proto::slots::{GmemAddress, HostAddress, Region, SlotId};

use crate::private::look;
use crate::slots::coherence::{Backing, Host};
use crate::slots::{Answer, Change, Error, HostRange, Machine, OPERATIONS, Shown, Taken, Wanted};
use crate::{Kernel, Memory, own, reclaim};

/// Pages of a VM's region.
pub const REGION_PAGES: u64 = (layout::USER_END - layout::GUEST) >> 12;
/// What the kernel shows of this machine: nothing says that it keeps caches coherent by itself.
const HOST: Host = Host { coherent: false };

/// What carries an event out on the kernel. Host addresses lead to what is shared, so what is private stays.
struct OnKernel<'a, K> {
    kernel: &'a mut K,
    /// Pages that went, how often the kernel was asked for some, and how often there was a shootdown.
    taken: u64,
    requests: u64,
    flushes: u64,
    /// The first of them.
    first: Option<Gfn>,
}

impl<K: Kernel> Machine for OnKernel<'_, K> {
    fn begin(&mut self, _: VmId, _: Gfn, _: Gfn) -> Result<(), Status> {
        Ok(())
    }

    fn unmap(&mut self, vm: VmId, gfn: Gfn, pages: u64, most: u64) -> Result<Taken, Status> {
        let found = look(vm, gfn, pages.min(most), self.kernel)?;
        if found.state != FrameState::Owned {
            return Ok(Taken { pages: 0, next: Gfn(gfn.0 + found.pages) });
        }
        let unmap = GuestUnmap { vm, view: 0, gfn, pages: found.pages, more: true, broken: false };
        let (unmapped, more) = match self.kernel.ask(&unmap) {
            // No batch is left for the event alone: it has a shootdown for each call then.
            Err(Status::Busy) => (self.kernel.ask(&GuestUnmap { more: false, ..unmap })?, false),
            answer => (answer?, true),
        };
        self.taken += unmapped.pages;
        self.requests += 1;
        self.flushes += u64::from(unmapped.waiting > 0);
        self.first = self.first.or(Some(gfn));
        reclaim::tell(vm, gfn, &unmapped, more, self.kernel);
        Ok(Taken { pages: unmapped.pages, next: unmapped.next })
    }

    fn flush(&mut self, vm: VmId) {
        self.flushes += u64::from(reclaim::end_event(vm, self.first.take().unwrap_or_default(), self.kernel));
    }

    fn end(&mut self, _: VmId) {}

    fn reclaimed(&mut self, _: VmId) {}
}

/// The region of a VM.
fn region(vm: VmId) -> Region {
    Region(vm.index() as u16)
}

impl Memory {
    /// Gives a VM its region, and the slot that shows it.
    ///
    /// # Errors
    /// [`Status::Exhausted`] if there is no place for it, which the kernel's limits rule out.
    pub(crate) fn show(&mut self, vm: VmId) -> Result<(), Status> {
        let gmem = self.gmems.create(vm, 0, REGION_PAGES << 12).map_err(|_| Status::Exhausted)?;
        let whole = Wanted {
            id: SlotId(0),
            flags: SlotFlags::GMEM,
            gfn: Gfn(0),
            pages: REGION_PAGES,
            host: HostAddress { region: region(vm), page: 0 },
            gmem: GmemAddress { gmem, page: 0 },
        };
        let slots = &mut self.slots;
        let made = slots
            .vm_make(vm)
            .and_then(|()| slots.region_make(vm, region(vm), REGION_PAGES, Backing::ORDINARY))
            .and_then(|()| slots.set(vm, &whole, HOST));
        let shown = made.map_err(|_| Status::Exhausted).and_then(|_| self.bind(vm, &whole));
        shown.inspect_err(|_| {
            self.slots.vm_gone(vm);
            self.gmems.vm_gone(vm);
        })
    }

    /// A VM that memory knows no slots of, since a predecessor made it, shows what it is made with.
    fn known(&mut self, vm: VmId) -> Result<(), Status> {
        if self.slots.knows(vm) { Ok(()) } else { self.show(vm) }
    }

    /// What a slot shows at a guest frame, and for how many pages in the same way.
    pub(crate) fn shown(&mut self, vm: VmId, gfn: Gfn) -> Result<Shown, Status> {
        self.known(vm)?;
        self.slots.fault(vm, gfn, HOST).map_err(Error::status)
    }

    pub(crate) fn slot_set(
        &mut self, sender: ServiceId, request: &SlotSet, kernel: &mut impl Kernel,
    ) -> Result<Progress, Status> {
        let SlotSet { vm, slot, flags, gfn, pages, host, gmem } = *request;
        own(vm, sender, kernel)?;
        self.known(vm)?;
        // The kernel maps nothing past the window, and so unmaps nothing there.
        if pages > 0 && gfn.0.checked_add(pages).is_none_or(|end| end > REGION_PAGES) {
            return Err(Status::Invalid);
        }
        let wanted = Wanted { id: slot, flags, gfn, pages, host, gmem };
        let made = self.slots.get(vm, slot).is_none();
        if self.slots.set(vm, &wanted, HOST).map_err(Error::status)? != Change::Emptying {
            if made && flags.contains(SlotFlags::GMEM) {
                self.bind(vm, &wanted).inspect_err(|_| self.unmake(vm, &wanted))?;
            }
            return Ok(Progress { more: false });
        }
        // The kernel looks through 1 GiB a call, of which most may be empty.
        for _ in 0..OPERATIONS {
            let Some((gfn, pages)) = self.slots.to_empty(vm) else { return Ok(Progress { more: false }) };
            let (next, taken) = if pages == 0 {
                (gfn, 0)
            } else {
                let unmap = GuestUnmap { vm, view: 0, gfn, pages, more: false, broken: false };
                let unmapped = self.unmap(&unmap, kernel)?;
                (unmapped.next, unmapped.pages)
            };
            if self.slots.emptied(vm, next).map_err(Error::status)? != Change::Emptying {
                if wanted.pages == 0 {
                    // Few slots have a gmem.
                    let _ = self.gmems.unbind(vm, slot);
                }
                return Ok(Progress { more: false });
            }
            if taken > 0 {
                break;
            }
        }
        Ok(Progress { more: true })
    }

    /// A slot that was just made goes: nothing was ever mapped there.
    fn unmake(&mut self, vm: VmId, wanted: &Wanted) {
        let gone = Wanted { pages: 0, ..*wanted };
        if self.slots.set(vm, &gone, HOST) == Ok(Change::Emptying) {
            let _ = self.slots.emptied(vm, Gfn(wanted.gfn.0 + wanted.pages));
        }
    }

    pub(crate) fn slot_info(
        &mut self, sender: ServiceId, request: &SlotInfo, kernel: &mut impl Kernel,
    ) -> Result<SlotReport, Status> {
        own(request.vm, sender, kernel)?;
        self.known(request.vm)?;
        let slot = self.slots.next(request.vm, request.slot).ok_or(Status::NotFound)?;
        Ok(SlotReport {
            slot: slot.id,
            flags: slot.flags,
            gfn: slot.gfn,
            pages: slot.pages,
            host: slot.host,
            gmem: slot.gmem,
            valid: slot.valid,
        })
    }

    pub(crate) fn discard(
        &mut self, sender: ServiceId, request: &Discard, kernel: &mut impl Kernel,
    ) -> Result<Progress, Status> {
        let Discard { vm, start, pages } = *request;
        own(vm, sender, kernel)?;
        self.known(vm)?;
        if start.region != region(vm) {
            return Err(Status::NotFound);
        }
        let range = HostRange { region: start.region, pages: start.page..start.page.saturating_add(pages) };
        let mut machine = OnKernel { kernel, taken: 0, requests: 0, flushes: 0, first: None };
        let mut answer = self.slots.event(&range, MAX_PAGES_PER_CALL, &mut machine);
        if answer == Err(Error::Machine(Status::Exhausted)) {
            // Large pages are split. What was unmapped before that isn't forgotten.
            answer = match self.donate(vm, machine.kernel) {
                Ok(()) => self.slots.event(&range, MAX_PAGES_PER_CALL, &mut machine),
                Err(status) => Err(Error::Machine(status)),
            };
        }
        self.took(vm, machine.taken, machine.requests, machine.flushes);
        match answer.map_err(Error::status)? {
            Answer::More => Ok(Progress { more: true }),
            Answer::Spurious | Answer::Done => Ok(Progress { more: false }),
        }
    }
}
