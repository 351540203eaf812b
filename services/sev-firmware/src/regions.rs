//! Regions that were turned private: a list for those who take them back, without authority of its own. The kernel knows of each
//! page what it is.

use caisson_proto::abi::{MAX_VMS, Status};
use caisson_proto::addr::{Gfn, VmId};
use heapless::Vec;

/// Regions of one VM at the most.
pub const PER_VM: usize = 16;

/// A region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Whose.
    pub vm: VmId,
    /// Its first page.
    pub gfn: Gfn,
    /// How many.
    pub pages: u64,
}

/// All regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions(Vec<Region, { MAX_VMS * PER_VM }>);

impl Regions {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether a region could be added.
    ///
    /// # Errors
    /// `State` if it overlaps another of this VM, `Exhausted` if the VM has too many.
    pub(crate) fn addable(&mut self, region: Region) -> Result<(), Status> {
        // What is left of a VM that had this slot before.
        self.0.retain(|old| old.vm.index() != region.vm.index() || old.vm == region.vm);
        let own = || self.0.iter().filter(|old| old.vm == region.vm);
        let end = region.gfn.0.saturating_add(region.pages);
        if own().any(|old| region.gfn.0 < old.gfn.0 + old.pages && old.gfn.0 < end) {
            return Err(Status::State);
        }
        if own().count() >= PER_VM || self.0.is_full() { Err(Status::Exhausted) } else { Ok(()) }
    }

    /// Adds it; it was [`Self::addable`].
    pub(crate) fn add(&mut self, region: Region) {
        let _ = self.0.push(region);
    }

    /// Removes exactly this one.
    pub(crate) fn remove(&mut self, region: Region) -> Result<(), Status> {
        let at = self.0.iter().position(|old| *old == region).ok_or(Status::NotFound)?;
        self.0.swap_remove(at);
        Ok(())
    }

    /// Forgets a VM's.
    pub(crate) fn forget(&mut self, vm: VmId) {
        self.0.retain(|region| region.vm != vm);
    }

    /// All.
    pub fn all(&self) -> &[Region] {
        &self.0
    }
}
