//! Pages come when they are needed: at a fault, cleared once; or with contents, once.

use caisson_proto::addr::{Gfn, LARGE_PAGES, PAGE_SIZE, VmId};
use caisson_proto::slots::{GmemAddress, GmemId, SlotId};

use super::bind::Binding;
use super::bitmaps::Plane;
use super::{Error, Fault, Gmems, MOST, Machine};

impl<const M: usize, const B: usize> Gmems<M, B> {
    /// A guest faulted on a private page of a slot: there is memory, it is initialised, and it is the guest's when this returns.
    ///
    /// # Errors
    /// [`Error::NotBound`]; [`Error::PastEnd`] outside the slot; [`Error::Stale`]; [`Error::NotPrivate`]; [`Error::Poisoned`];
    /// [`Error::Full`]; [`Error::Machine`]. A fault that is repeated goes on where this one stopped.
    pub fn fault(&mut self, vm: VmId, slot: SlotId, gfn: Gfn, machine: &mut impl Machine) -> Result<Fault, Error> {
        let (binding, at) = self.binding(vm, slot, gfn)?;
        self.allocate(vm, gfn, at, machine)?;
        if !self.bits.get(Plane::Ready, at.gmem.0, at.page) {
            machine.clear(at).map_err(Error::Machine)?;
            self.bits.set(Plane::Ready, at.gmem.0, &(at.page..at.page + 1));
        }
        machine.prepare(vm, gfn, at).map_err(Error::Machine)?;
        Ok(Fault { at, pages: if self.is_large(&binding, gfn, at) { LARGE_PAGES } else { 1 } })
    }

    /// Fills pages of a slot from the caller's, whose address is in bytes: how many were filled, at most 512 a call. What stands
    /// behind the last is to be asked for again.
    ///
    /// # Errors
    /// If none was filled, why: [`Error::Unaligned`] for a source that isn't a multiple of 4 KiB, before anything is pinned;
    /// [`Error::BadSize`] for no pages; [`Error::Exists`] for a page that has contents; and as for [`Gmems::fault`].
    pub fn populate(
        &mut self, vm: VmId, slot: SlotId, gfn: Gfn, pages: u64, source: u64, machine: &mut impl Machine,
    ) -> Result<u64, Error> {
        if !source.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        if pages == 0 || gfn.0.checked_add(pages).is_none() {
            return Err(Error::BadSize);
        }
        for done in 0..pages.min(MOST) {
            let page = done.checked_mul(PAGE_SIZE).and_then(|bytes| source.checked_add(bytes)).ok_or(Error::BadSize);
            let filled = page.and_then(|source| self.populate_one(vm, slot, Gfn(gfn.0 + done), source, machine));
            if let Err(error) = filled {
                return if done > 0 { Ok(done) } else { Err(error) };
            }
        }
        Ok(pages.min(MOST))
    }

    /// The source is pinned before anything of the gmem is looked at: who holds it may be waiting for the gmem.
    fn populate_one(
        &mut self, vm: VmId, slot: SlotId, gfn: Gfn, source: u64, machine: &mut impl Machine,
    ) -> Result<(), Error> {
        machine.pin(source).map_err(Error::Machine)?;
        let filled = self.binding(vm, slot, gfn).and_then(|(_, at)| {
            if self.bits.get(Plane::Ready, at.gmem.0, at.page) {
                return Err(Error::Exists);
            }
            self.allocate(vm, gfn, at, machine)?;
            machine.fill(vm, gfn, at, source).map_err(Error::Machine)?;
            self.bits.set(Plane::Ready, at.gmem.0, &(at.page..at.page + 1));
            Ok(())
        });
        machine.unpin(source);
        filled
    }

    /// Sees to it that there is memory behind a private page, and room to note that it is initialised.
    fn allocate(&mut self, vm: VmId, gfn: Gfn, at: GmemAddress, machine: &mut impl Machine) -> Result<(), Error> {
        if !self.is_private(vm, gfn) {
            return Err(Error::NotPrivate);
        }
        let (of, page) = (at.gmem.0, at.page..at.page + 1);
        if self.bits.get(Plane::Poisoned, of, at.page) {
            return Err(Error::Poisoned);
        }
        if !self.bits.reserve(Plane::Ready, of, &page) {
            return Err(Error::Full);
        }
        if self.bits.get(Plane::Allocated, of, at.page) {
            return Ok(());
        }
        let room = self.bits.reserve(Plane::Allocated, of, &page);
        let allocated = if room { machine.allocate(at).map_err(Error::Machine) } else { Err(Error::Full) };
        if allocated.is_ok() {
            self.bits.set(Plane::Allocated, of, &page);
        } else {
            self.bits.trim(Plane::Allocated, of, &page);
            self.bits.trim(Plane::Ready, of, &page);
        }
        allocated
    }

    /// Whether the 2 MiB around a page may be mapped as one: bound as a whole, aligned on both sides, private throughout,
    /// there, initialised, and sound.
    fn is_large(&self, binding: &Binding, gfn: Gfn, at: GmemAddress) -> bool {
        let (frames, pages) = (gfn.0 / LARGE_PAGES * LARGE_PAGES, at.page / LARGE_PAGES * LARGE_PAGES);
        let (frames, pages) = (frames..frames + LARGE_PAGES, pages..pages + LARGE_PAGES);
        let within = binding.gfn.0 <= frames.start && frames.end <= binding.gfn.0 + binding.pages;
        let count = |plane, of, range| self.bits.count(plane, of, range).0;
        within
            && gfn.0 % LARGE_PAGES == at.page % LARGE_PAGES
            && count(Plane::Private, binding.vm.index() as u16, &frames) == LARGE_PAGES
            && count(Plane::Ready, at.gmem.0, &pages) == LARGE_PAGES
            && count(Plane::Poisoned, at.gmem.0, &pages) == 0
    }

    /// The memory behind a page is broken: nobody sees it any more, and faults on it are told so until a hole is punched there.
    ///
    /// # Errors
    /// [`Error::NoGmem`]; [`Error::PastEnd`]; [`Error::Full`]; [`Error::Machine`].
    pub fn poison(&mut self, id: GmemId, page: u64, machine: &mut impl Machine) -> Result<(), Error> {
        if page >= self.gmem(id)?.pages {
            return Err(Error::PastEnd);
        }
        if !self.bits.reserve(Plane::Poisoned, id.0, &(page..page + 1)) {
            return Err(Error::Full);
        }
        if let Err(error) = self.unmap_bound(id, &(page..page + 1), machine) {
            self.bits.trim(Plane::Poisoned, id.0, &(page..page + 1));
            return Err(error);
        }
        self.bits.set(Plane::Poisoned, id.0, &(page..page + 1));
        Ok(())
    }
}
