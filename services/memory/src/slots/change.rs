//! Making, changing and deleting slots.
//!
//! A slot that is deleted or moved is first made invalid, so that nothing is mapped there any more; then its pages are
//! unmapped, by whoever asks [`Slots::to_empty`], a bounded number at a time; only then it goes. Swaps wait while a
//! notification is open, so that its begin and its end see the same slots.

use caisson_proto::addr::{Gfn, VmId};

use super::coherence::{Caching, Host, decide};
use super::rules::{Plan, plan};
use super::vms::Emptying;
use super::{Error, Slot, Slots, Wanted};

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was so already.
    Nothing,
    /// Done.
    Done,
    /// The slot is invalid; its pages are to be unmapped.
    Emptying,
}

impl<const N: usize, const G: usize> Slots<N, G> {
    /// Makes a slot as it is wanted, on this host. What goes on is gone on with by the same request.
    ///
    /// # Errors
    /// As [`super::rules`] says; [`Error::NoRegion`], [`Error::PastEnd`], [`Error::Incoherent`], [`Error::Full`] and
    /// [`Error::Overlaps`] for a new slot, the last for one that is moved, too; [`Error::Busy`] while a notification of
    /// the VM is open or another slot of it is being emptied.
    pub fn set(&mut self, vm: VmId, wanted: &Wanted, host: Host) -> Result<Change, Error> {
        let of = self.vm(vm)?;
        if let Some(emptying) = &of.emptying {
            return if emptying.wanted == *wanted { Ok(Change::Emptying) } else { Err(Error::Busy) };
        }
        let old = self.get(vm, wanted.id).copied();
        let plan = plan(old.as_ref(), wanted)?;
        let caching = match plan {
            Plan::Nothing => return Ok(Change::Nothing),
            Plan::Create => Some(self.may_create(vm, wanted, host)?),
            Plan::Move => self.may_overlap_none(vm, wanted).map(|()| None)?,
            Plan::Delete | Plan::Flags => None,
        };
        if self.vm(vm)?.is_open() {
            return Err(Error::Busy);
        }
        if let Some(caching) = caching {
            let Wanted { id, flags, gfn, pages, host, gmem } = *wanted;
            self.put(Slot { vm, id, flags, gfn, pages, host, gmem, caching, valid: true });
            self.vm_mut(vm)?.count += 1;
            return Ok(Change::Done);
        }
        if plan == Plan::Flags {
            self.edit(vm, wanted, |slot| slot.flags = wanted.flags);
            return Ok(Change::Done);
        }
        self.edit(vm, wanted, |slot| slot.valid = false);
        let next = old.map_or(wanted.gfn, |slot| slot.gfn);
        self.vm_mut(vm)?.emptying = Some(Emptying { wanted: *wanted, next });
        Ok(Change::Emptying)
    }

    /// What is to be unmapped, and was not yet: guest frames of the VM's invalid slot.
    pub fn to_empty(&self, vm: VmId) -> Option<(Gfn, u64)> {
        let emptying = self.vm(vm).ok()?.emptying.as_ref()?;
        let slot = self.get(vm, emptying.wanted.id)?;
        Some((emptying.next, slot.end().saturating_sub(emptying.next.0)))
    }

    /// Nothing of the VM's invalid slot is mapped below `next`. Once that is so of all of it, the slot goes, or appears where it was
    /// moved to.
    ///
    /// # Errors
    /// [`Error::Absent`] if none is being emptied; [`Error::Busy`] while a notification is open, with what was reached
    /// remembered.
    pub fn emptied(&mut self, vm: VmId, next: Gfn) -> Result<Change, Error> {
        let of = self.vm_mut(vm)?;
        let open = of.is_open();
        let emptying = of.emptying.as_mut().ok_or(Error::Absent)?;
        emptying.next = emptying.next.max(next);
        let Emptying { wanted, next } = *emptying;
        let slot = *self.get(vm, wanted.id).ok_or(Error::Absent)?;
        if next.0 < slot.end() {
            return Ok(Change::Emptying);
        }
        if open {
            return Err(Error::Busy);
        }
        self.take(&slot);
        let of = self.vm_mut(vm)?;
        of.emptying = None;
        if wanted.pages == 0 {
            of.count = of.count.saturating_sub(1);
        } else {
            self.put(Slot { gfn: wanted.gfn, flags: wanted.flags, valid: true, ..slot });
        }
        Ok(Change::Done)
    }

    /// Whether a slot can be made, and how it shows its memory.
    fn may_create(&self, vm: VmId, wanted: &Wanted, host: Host) -> Result<Caching, Error> {
        let region = self.region(vm, wanted.host.region)?;
        if wanted.host.page + wanted.pages > region.pages {
            return Err(Error::PastEnd);
        }
        self.may_overlap_none(vm, wanted)?;
        let caching = decide(region.backing, host).map_err(|_| Error::Incoherent)?;
        if self.has_room(self.vm(vm)?) { Ok(caching) } else { Err(Error::Full) }
    }

    /// Whether no other slot is where this one is to be.
    fn may_overlap_none(&self, vm: VmId, wanted: &Wanted) -> Result<(), Error> {
        let mut there = self.in_frames(vm, wanted.gfn.0, wanted.pages);
        if there.any(|slot| slot.id != wanted.id) { Err(Error::Overlaps) } else { Ok(()) }
    }

    /// Edits what no index depends on.
    fn edit(&mut self, vm: VmId, wanted: &Wanted, edit: impl FnOnce(&mut Slot)) {
        if let Some(place) = self.ids.get(super::id_key(vm, wanted.id.0.into()))
            && let Some(slot) = self.pool.get_mut(usize::from(place))
        {
            edit(slot);
        }
    }
}
