//! Which slot shows which pages of a gmem.

use core::ops::Range;

use caisson_proto::addr::{Gfn, PAGE_SIZE, VmId};
use caisson_proto::slots::{GmemAddress, GmemId, SlotId};

use super::{END, Error, Gmems};

/// A slot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub vm: VmId,
    pub slot: SlotId,
    pub gfn: Gfn,
    pub pages: u64,
    pub at: GmemAddress,
    /// Of the gmem, when it was bound.
    pub generation: u32,
}

fn slot_key(vm: VmId, slot: u64) -> u64 {
    ((vm.index() as u64) << 16) + slot
}

pub(super) fn page_key(gmem: GmemId, page: u64) -> u64 {
    (u64::from(gmem.0) << 40) + page
}

impl<const M: usize, const B: usize> Gmems<M, B> {
    /// Binds a slot's guest frames to a gmem, from so many bytes on.
    ///
    /// # Errors
    /// [`Error::NoGmem`]; [`Error::OtherVm`]; [`Error::Unaligned`] for an offset that isn't a multiple of 4 KiB;
    /// [`Error::BadSize`] for no pages; [`Error::PastEnd`]; [`Error::Bound`] if pages are bound to another slot, or the slot
    /// to other pages; [`Error::Full`].
    pub fn bind(&mut self, vm: VmId, slot: SlotId, gfn: Gfn, pages: u64, id: GmemId, offset: u64) -> Result<(), Error> {
        let gmem = self.gmem(id)?;
        if gmem.vm != Some(vm) {
            return Err(Error::OtherVm);
        }
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        if pages == 0 || gfn.0 >= END || pages > END - gfn.0 {
            return Err(Error::BadSize);
        }
        let at = GmemAddress { gmem: id, page: offset / PAGE_SIZE };
        let end = at.page.checked_add(pages).filter(|end| *end <= gmem.pages).ok_or(Error::PastEnd)?;
        let generation = gmem.generation;
        if self.slots.get(slot_key(vm, slot.0.into())).is_some() || self.bound(id, &(at.page..end)).next().is_some() {
            return Err(Error::Bound);
        }
        if self.bindings_of(vm).count() >= Self::BINDINGS_OF_A_VM {
            return Err(Error::Full);
        }
        let binding = Binding { vm, slot, gfn, pages, at, generation };
        let place = match self.free.pop() {
            Some(place) => {
                if let Some(of) = self.bindings.get_mut(usize::from(place)) {
                    *of = binding;
                }
                place
            }
            None => {
                self.bindings.push(binding).map_err(|_| Error::Full)?;
                (self.bindings.len() - 1) as u16
            }
        };
        // There is room for as many keys as there are bindings.
        let _ = self.slots.insert(slot_key(vm, slot.0.into()), place);
        let _ = self.places.insert(page_key(id, at.page), place);
        Ok(())
    }

    /// A slot goes. Whoever deletes it has unmapped its pages.
    ///
    /// # Errors
    /// [`Error::NotBound`] if it has no gmem.
    pub fn unbind(&mut self, vm: VmId, slot: SlotId) -> Result<(), Error> {
        let place = self.slots.remove(slot_key(vm, slot.0.into())).ok_or(Error::NotBound)?;
        let binding = self.bindings.get(usize::from(place)).ok_or(Error::NotBound)?;
        // Of one that is gone, the pages may be another's by now.
        if self.places.get(page_key(binding.at.gmem, binding.at.page)) == Some(place) {
            self.places.remove(page_key(binding.at.gmem, binding.at.page));
        }
        let _ = self.free.push(place);
        Ok(())
    }

    /// What a slot shows at a guest frame.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::Stale`], [`Error::PastEnd`].
    pub(crate) fn binding(&self, vm: VmId, slot: SlotId, gfn: Gfn) -> Result<GmemAddress, Error> {
        let place = self.slots.get(slot_key(vm, slot.0.into())).ok_or(Error::NotBound)?;
        let binding = *self.bindings.get(usize::from(place)).ok_or(Error::NotBound)?;
        if binding.vm != vm {
            return Err(Error::NotBound);
        }
        let gmem = self.gmem(binding.at.gmem).map_err(|_| Error::Stale)?;
        if gmem.generation != binding.generation {
            return Err(Error::Stale);
        }
        let after = gfn.0.checked_sub(binding.gfn.0).filter(|after| *after < binding.pages).ok_or(Error::PastEnd)?;
        Ok(GmemAddress { page: binding.at.page + after, ..binding.at })
    }

    /// Bindings that show pages of a gmem.
    pub(crate) fn bound(&self, id: GmemId, pages: &Range<u64>) -> impl Iterator<Item = &Binding> + use<'_, M, B> {
        let from = pages.start;
        let of = |place: u16| self.bindings.get(usize::from(place));
        let before = self.places.floor(page_key(id, from)).and_then(of);
        let before = before.filter(|it| it.at.gmem == id && it.at.page < from && it.at.page + it.pages > from);
        let within = self.places.range(page_key(id, from)..page_key(id, pages.end)).filter_map(move |(_, at)| of(at));
        before.into_iter().chain(within)
    }

    /// A VM's.
    pub(super) fn bindings_of(&self, vm: VmId) -> impl Iterator<Item = &Binding> {
        let all = self.slots.range(slot_key(vm, 0)..slot_key(vm, 1 << 16));
        all.filter_map(|(_, place)| self.bindings.get(usize::from(place)))
    }
}
