//! gmem: private guest memory without a host address.
//!
//! A gmem belongs to one VM and is bound to slots of it, each page to one at the most. Which guest frames are private is an
//! attribute of the VM; room for it is reserved before anything is changed, so that a conversion can't stop half-way for lack of
//! it. What is there, and whether it is private, the kernel knows: see `private`.

mod bind;
mod bitmaps;
mod types;

use core::ops::Range;

use caisson_proto::abi::MAX_VMS;
use caisson_proto::addr::{Gfn, PAGE_SIZE, VmId};
use caisson_proto::slots::{GmemAddress, GmemId};
use heapless::Vec;

use bitmaps::Bitmaps;
pub(crate) use bitmaps::Plane;
pub use types::Error;

use crate::keyed::Keyed;
pub(crate) use bind::Binding;

/// gmems at the most; a VM has [`GMEMS_OF_A_VM`] of them.
pub const GMEMS: usize = GMEMS_OF_A_VM * MAX_VMS;
/// gmems of a VM at the most, so that none can leave another without.
pub const GMEMS_OF_A_VM: usize = 4;
/// The longest, in pages.
const END: u64 = 1 << 40;
/// Flags that are known: none yet.
pub const FLAGS: u64 = 0;

/// One gmem.
#[derive(Clone, Debug, Default)]
struct Gmem {
    /// `None` if there is none in this place.
    vm: Option<VmId>,
    pages: u64,
    /// How many there were in this place before.
    generation: u32,
}

/// All gmems, with at most `M` bitmaps and `B` bindings.
#[derive(Debug)]
pub struct Gmems<const M: usize, const B: usize> {
    gmems: Vec<Gmem, GMEMS>,
    bits: Bitmaps<M>,
    bindings: Vec<Binding, B>,
    free: Vec<u16, B>,
    /// Bindings by slot, and by the page of the gmem with which they begin.
    slots: Keyed<B>,
    places: Keyed<B>,
}

impl<const M: usize, const B: usize> Gmems<M, B> {
    /// Bitmaps that each VM is sure to get, of those for private guest frames.
    const SURE: u64 = M as u64 / 4 / MAX_VMS as u64;
    /// Bindings that a VM has at the most, so that none can leave another without.
    const BINDINGS_OF_A_VM: usize = if B < MAX_VMS { B } else { B / MAX_VMS };

    /// Without any.
    pub const fn new() -> Self {
        Self {
            gmems: Vec::new(),
            bits: Bitmaps::new(),
            bindings: Vec::new(),
            free: Vec::new(),
            slots: Keyed::new(),
            places: Keyed::new(),
        }
    }

    /// Makes one of so many bytes.
    ///
    /// # Errors
    /// [`Error::BadFlags`] for flags that aren't known; [`Error::BadSize`] for no bytes, for a number that isn't a multiple of
    /// 4 KiB, and for more than there can be; [`Error::Full`] if the VM has as many as it can have.
    pub fn create(&mut self, vm: VmId, flags: u64, bytes: u64) -> Result<GmemId, Error> {
        if flags & !FLAGS != 0 {
            return Err(Error::BadFlags);
        }
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) || bytes / PAGE_SIZE > END {
            return Err(Error::BadSize);
        }
        if self.gmems.iter().filter(|gmem| gmem.vm == Some(vm)).count() >= GMEMS_OF_A_VM {
            return Err(Error::Full);
        }
        let unused = self.gmems.iter().position(|gmem| gmem.vm.is_none());
        let at = match unused {
            Some(at) => at,
            None => self.gmems.push(Gmem::default()).map(|()| self.gmems.len() - 1).map_err(|_| Error::Full)?,
        };
        let gmem = self.gmems.get_mut(at).ok_or(Error::Full)?;
        *gmem = Gmem { vm: Some(vm), pages: bytes / PAGE_SIZE, generation: gmem.generation };
        Ok(GmemId(at as u16))
    }

    /// Gives one up. What was bound to it is stale from now on. `shown`: slots show it, and so may have pages of it.
    ///
    /// # Errors
    /// [`Error::NoGmem`] if there is none; [`Error::Busy`] while it is shown: delete the slots first.
    pub fn destroy(&mut self, id: GmemId, shown: bool) -> Result<(), Error> {
        self.gmem(id)?;
        if shown {
            return Err(Error::Busy);
        }
        if let Some(gmem) = self.gmems.get_mut(usize::from(id.0)) {
            *gmem = Gmem { vm: None, pages: 0, generation: gmem.generation.wrapping_add(1) };
        }
        self.bits.drop_all(Plane::Poisoned, id.0);
        self.places.remove_range(bind::page_key(id, 0)..bind::page_key(id, END), |_| ());
        Ok(())
    }

    /// A VM is gone, and so are its gmems.
    pub fn vm_gone(&mut self, vm: VmId) {
        self.bits.drop_all(Plane::Private, vm.index() as u16);
        loop {
            let next = self.bindings_of(vm).next().map(|binding| binding.slot);
            let Some(slot) = next else { break };
            // It is there.
            let _ = self.unbind(vm, slot);
        }
        for at in 0..self.gmems.len() {
            if self.gmems.get(at).is_some_and(|gmem| gmem.vm == Some(vm)) {
                let _ = self.destroy(GmemId(at as u16), false);
            }
        }
    }

    /// Whether a gmem is this VM's, and how many pages it has.
    ///
    /// # Errors
    /// [`Error::NoGmem`] if it isn't.
    pub fn of(&self, vm: VmId, id: GmemId) -> Result<u64, Error> {
        self.gmem(id).ok().filter(|gmem| gmem.vm == Some(vm)).map(|gmem| gmem.pages).ok_or(Error::NoGmem)
    }

    /// Whether a VM wants a guest frame private.
    pub fn is_private(&self, vm: VmId, gfn: Gfn) -> bool {
        gfn.0 < END && self.bits.get(Plane::Private, vm.index() as u16, gfn.0)
    }

    /// Sees to it that guest frames can be made private.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room to note it.
    pub fn reserve(&mut self, vm: VmId, frames: &Range<u64>) -> Result<(), Error> {
        let of = vm.index() as u16;
        let wanted = self.bits.lacking(Plane::Private, of, frames);
        let sure = self.bits.pieces(Plane::Private, of).saturating_add(wanted) <= Self::SURE;
        let has_room = sure || self.has_room(wanted, Some(of));
        if has_room && self.bits.reserve(Plane::Private, of, frames) { Ok(()) } else { Err(Error::Full) }
    }

    /// Whether so many bitmaps can be had without those that VMs, other than this one, are sure to get.
    fn has_room(&self, wanted: u64, of: Option<u16>) -> bool {
        let others = (0..MAX_VMS as u16).filter(|other| Some(*other) != of);
        let owed = others.map(|other| Self::SURE.saturating_sub(self.bits.pieces(Plane::Private, other))).sum::<u64>();
        wanted == 0 || wanted.saturating_add(owed) <= self.bits.left() as u64
    }

    /// What was reserved and isn't needed goes.
    pub fn trim(&mut self, vm: VmId, frames: &Range<u64>) {
        self.bits.trim(Plane::Private, vm.index() as u16, frames);
    }

    /// Guest frames, reserved before, are private or shared.
    pub fn set_private(&mut self, vm: VmId, frames: &Range<u64>, private: bool) {
        let of = vm.index() as u16;
        if private {
            self.bits.set(Plane::Private, of, frames);
        } else {
            self.bits.clear(Plane::Private, of, frames);
        }
    }

    /// How many of these guest frames a VM wants private.
    pub fn count_private(&self, vm: VmId, frames: &Range<u64>) -> u64 {
        self.bits.count(Plane::Private, vm.index() as u16, frames)
    }

    /// Whether any of these pages of a gmem is broken.
    pub fn any_poisoned(&self, at: GmemAddress, pages: u64) -> bool {
        self.bits.count(Plane::Poisoned, at.gmem.0, &(at.page..at.page + pages)) > 0
    }

    /// A page of a gmem is broken.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room to note it.
    pub fn poison(&mut self, at: GmemAddress) -> Result<(), Error> {
        let page = at.page..at.page + 1;
        let wanted = self.bits.lacking(Plane::Poisoned, at.gmem.0, &page);
        if !self.has_room(wanted, None) || !self.bits.reserve(Plane::Poisoned, at.gmem.0, &page) {
            return Err(Error::Full);
        }
        self.bits.set(Plane::Poisoned, at.gmem.0, &page);
        Ok(())
    }

    /// Other memory may take the place of broken pages.
    pub fn heal(&mut self, id: GmemId, pages: &Range<u64>) {
        self.bits.clear(Plane::Poisoned, id.0, pages);
    }

    fn gmem(&self, id: GmemId) -> Result<&Gmem, Error> {
        self.gmems.get(usize::from(id.0)).filter(|gmem| gmem.vm.is_some()).ok_or(Error::NoGmem)
    }
}

impl<const M: usize, const B: usize> Default for Gmems<M, B> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
