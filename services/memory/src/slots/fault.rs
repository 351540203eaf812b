//! What a guest frame shows.

use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::kernel::Access;
use caisson_proto::memory::SlotFlags;
use caisson_proto::slots::{GmemAddress, HostAddress, SlotId};

use super::coherence::{Caching, Host, confirm};
use super::{Error, Slots};

/// What a guest frame shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// By which slot.
    pub slot: SlotId,
    /// The memory.
    pub host: HostAddress,
    /// The page of private memory, if the slot has a gmem.
    pub gmem: Option<GmemAddress>,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is cached.
    pub caching: Caching,
    /// How many pages from here on the slot shows in the same way.
    pub pages: u64,
}

impl Shown {
    /// What the guest may do with it.
    pub const fn access(&self) -> Access {
        if self.writable { Access::all() } else { Access::READ.union(Access::EXECUTE) }
    }
}

impl<const N: usize, const G: usize> Slots<N, G> {
    /// What a VM sees at a guest frame, on this host.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::NoSlot`] where there is nothing; [`Error::Busy`] while the slot is being deleted or moved, or an
    /// event covers the frame;
    /// [`Error::Incoherent`] if what was decided of its caching doesn't hold here.
    pub fn fault(&self, vm: VmId, gfn: Gfn, host: Host) -> Result<Shown, Error> {
        let of = self.vm(vm)?;
        let slot = self.in_frames(vm, gfn.0, 1).next().ok_or(Error::NoSlot)?;
        if !slot.valid || of.open.as_ref().is_some_and(|open| open.covers(gfn)) {
            return Err(Error::Busy);
        }
        let backing = self.region(vm, slot.host.region)?.backing;
        let caching = confirm(slot.caching, backing, host).map_err(|_| Error::Incoherent)?;
        let has_gmem = slot.flags.contains(SlotFlags::GMEM);
        let after = gfn.0 - slot.gfn.0;
        Ok(Shown {
            slot: slot.id,
            host: HostAddress { page: slot.host.page + after, ..slot.host },
            gmem: has_gmem.then(|| GmemAddress { page: slot.gmem.page + after, ..slot.gmem }),
            writable: !slot.flags.contains(SlotFlags::READ_ONLY),
            caching,
            pages: slot.pages - after,
        })
    }
}
