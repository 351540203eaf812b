//! gmem: private guest memory without a host address.
//!
//! A gmem belongs to one VM and is bound to slots of it, each page to one at the most. Its pages are allocated when they are first
//! needed, cleared or populated once, and prepared for the guest at each fault, which is harmless if they are. Which guest
//! frames are private is an attribute of the VM; it is reserved before anything is changed, so that a conversion can't stop
//! half-way for lack of room.
//!
//! The library decides and keeps account; what it decides, a [`Machine`] carries out.

mod bind;
mod bitmaps;
mod convert;
mod hole;
mod pages;
mod types;

use caisson_proto::addr::{PAGE_SIZE, VmId};
use caisson_proto::slots::GmemId;
use heapless::Vec;

pub use bitmaps::{Bitmaps, Plane};
pub use types::{Error, Fault, Machine};

use crate::keyed::Keyed;
use bind::Binding;

/// gmems at the most.
pub const GMEMS: usize = 64;
/// The longest, in pages.
const END: u64 = 1 << 40;
/// Flags that are known: none yet.
pub const FLAGS: u64 = 0;
/// Pages that one call works on at the most.
pub const MOST: u64 = 512;

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
    leaked: u64,
}

impl<const M: usize, const B: usize> Gmems<M, B> {
    /// Without any.
    pub const fn new() -> Self {
        Self {
            gmems: Vec::new(),
            bits: Bitmaps::new(),
            bindings: Vec::new(),
            free: Vec::new(),
            slots: Keyed::new(),
            places: Keyed::new(),
            leaked: 0,
        }
    }

    /// Makes one of so many bytes.
    ///
    /// # Errors
    /// [`Error::BadFlags`] for flags that aren't known; [`Error::BadSize`] for no bytes, for a number that isn't a multiple of
    /// 4 KiB, and for more than there can be; [`Error::Full`] if there are as many as there can be.
    pub fn create(&mut self, vm: VmId, flags: u64, bytes: u64) -> Result<GmemId, Error> {
        if flags & !FLAGS != 0 {
            return Err(Error::BadFlags);
        }
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) || bytes / PAGE_SIZE > END {
            return Err(Error::BadSize);
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

    /// Gives one up. What was bound to it is stale from now on.
    ///
    /// # Errors
    /// [`Error::NoGmem`] if there is none; [`Error::Busy`] while pages of it are allocated: punch holes first.
    pub fn destroy(&mut self, id: GmemId) -> Result<(), Error> {
        self.gmem(id)?;
        if self.bits.count(Plane::Allocated, id.0, &(0..END)).0 > 0 {
            return Err(Error::Busy);
        }
        if let Some(gmem) = self.gmems.get_mut(usize::from(id.0)) {
            *gmem = Gmem { vm: None, pages: 0, generation: gmem.generation.wrapping_add(1) };
        }
        self.bits.drop_all(Plane::Ready, id.0);
        self.bits.drop_all(Plane::Poisoned, id.0);
        self.places.remove_range(bind::page_key(id, 0)..bind::page_key(id, END), |_| ());
        Ok(())
    }

    /// A VM's attributes and bindings go. Its gmems stay until they are given up.
    pub fn vm_gone(&mut self, vm: VmId) {
        self.bits.drop_all(Plane::Private, vm.index() as u16);
        loop {
            let next = self.bindings_of(vm).next().map(|binding| binding.slot);
            let Some(slot) = next else { return };
            // It is there.
            let _ = self.unbind(vm, slot);
        }
    }

    /// Pages that couldn't be taken back, and are never used again.
    pub const fn leaked(&self) -> u64 {
        self.leaked
    }

    /// Whether memory is behind a page.
    pub fn is_allocated(&self, id: GmemId, page: u64) -> bool {
        self.bits.get(Plane::Allocated, id.0, page)
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
