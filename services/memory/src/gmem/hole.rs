//! Memory of a gmem goes back.

use core::ops::Range;

use caisson_proto::addr::{Gfn, PAGE_SIZE, VmId};
use caisson_proto::slots::{GmemAddress, GmemId};

use super::bind::Binding;
use super::bitmaps::Plane;
use super::{Error, Gmems, MOST, Machine};

impl<const M: usize, const B: usize> Gmems<M, B> {
    /// Takes the memory behind some bytes away, at most 512 pages a call: where to go on, in bytes, if there is more. What lies past
    /// the gmem's end isn't there.
    ///
    /// # Errors
    /// [`Error::NoGmem`]; [`Error::Unaligned`]; [`Error::BadSize`] for no bytes; [`Error::Machine`], and nothing was taken by
    /// this call.
    pub fn punch(
        &mut self, id: GmemId, offset: u64, length: u64, machine: &mut impl Machine,
    ) -> Result<Option<u64>, Error> {
        let end = self.gmem(id)?.pages;
        if !(offset | length).is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        if length == 0 {
            return Err(Error::BadSize);
        }
        let hole = offset / PAGE_SIZE..(offset / PAGE_SIZE).saturating_add(length / PAGE_SIZE).min(end);
        let Some(first) = self.bits.count(Plane::Allocated, id.0, &hole).1 else {
            self.bits.clear(Plane::Poisoned, id.0, &hole);
            return Ok(None);
        };
        let now = first..hole.end.min(first + MOST);
        self.unmap_bound(id, &now, machine)?;
        let mut at = now.start;
        while let (_, Some(page)) = self.bits.count(Plane::Allocated, id.0, &(at..now.end)) {
            at = page + 1;
            if self.bits.get(Plane::Poisoned, id.0, page) {
                self.leaked += 1;
                continue;
            }
            while at < now.end && self.is_allocated(id, at) && !self.bits.get(Plane::Poisoned, id.0, at) {
                at += 1;
            }
            self.leaked += machine.free(GmemAddress { gmem: id, page }, at - page);
        }
        for plane in [Plane::Allocated, Plane::Ready, Plane::Poisoned] {
            self.bits.clear(plane, id.0, &(hole.start..now.end));
        }
        let rest = now.end..hole.end;
        let more = self.bits.count(Plane::Allocated, id.0, &rest).1;
        if more.is_none() {
            self.bits.clear(Plane::Poisoned, id.0, &rest);
        }
        Ok(more.map(|page| page * PAGE_SIZE))
    }

    /// Unmaps what slots show of pages. All slots are of one VM: one beginning, one flush, one end.
    pub(super) fn unmap_bound(
        &mut self, id: GmemId, pages: &Range<u64>, machine: &mut impl Machine,
    ) -> Result<(), Error> {
        let shown = |binding: &Binding| {
            let from = pages.start.max(binding.at.page);
            let to = pages.end.min(binding.at.page + binding.pages);
            (binding.gfn.0 + from - binding.at.page, to - from)
        };
        let hull = self.bound(id, pages).fold(None::<(VmId, u64, u64)>, |hull, binding| {
            let (gfn, count) = shown(binding);
            let (_, low, high) = hull.unwrap_or((binding.vm, gfn, gfn));
            Some((binding.vm, low.min(gfn), high.max(gfn + count)))
        });
        let Some((vm, low, high)) = hull else { return Ok(()) };
        machine.begin(vm, Gfn(low), Gfn(high)).map_err(Error::Machine)?;
        for (gfn, count) in self.bound(id, pages).map(shown) {
            machine.unmap(vm, Gfn(gfn), count, true);
        }
        machine.flush(vm);
        machine.end(vm);
        Ok(())
    }
}
