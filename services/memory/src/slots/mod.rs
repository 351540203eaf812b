//! Slots: where a VM sees which memory.
//!
//! A slot maps guest frames `gfn..gfn + pages` to pages of a region from a host address on. Three indices find it: by id, for
//! its vmm; by guest frame, for faults; by host address, for notifications. All VMs share one pool of slots; each has
//! [`RESERVED`] for itself, and the rest is for whoever comes first, so that one VM may have all the slots that its ids allow
//! and no other is without.
//!
//! [`rules`] says what may be changed, `change` changes it, `events` takes the memory behind host addresses away, and
//! `fault` says what a guest frame shows. Nothing here has a heap, takes a lock, or sends a message.

mod change;
pub mod coherence;
mod directory;
mod events;
mod fault;
mod hosts;
pub mod rules;
mod types;
mod vms;

use caisson_proto::abi::{MAX_VMS, Status};
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::memory::MAX_SLOTS;
use caisson_proto::slots::{HostAddress, PAGE_BITS, Region, SlotId};
use caisson_proto::wire::Field;
use heapless::Vec;

pub use change::Change;
use coherence::Backing;
use directory::Directory;
pub use directory::GRANULES;
pub use events::{Answer, Machine, OPERATIONS, Taken};
pub use fault::Shown;
use hosts::Hosts;
pub use types::{Error, HostRange, Slot, Wanted};
use vms::Vm;

use crate::keyed::Keyed;

/// Slots that a VM has for itself.
pub const RESERVED: usize = 16;
/// Slots in a pool from which one VM can have [`MAX_SLOTS`].
pub const CAPACITY: usize = MAX_SLOTS as usize + (MAX_VMS - 1) * RESERVED;
/// The longest anything is, in pages.
const END: u64 = 1 << PAGE_BITS;

/// A region of a VM.
#[derive(Clone, Debug)]
struct RegionOf<const G: usize> {
    /// `None` if there is no such region.
    vm: Option<VmId>,
    pages: u64,
    backing: Backing,
    directory: Directory<G>,
    /// The place that its first slot has, or would have, among all by host address.
    first: usize,
}

impl<const G: usize> RegionOf<G> {
    const NONE: Self = Self {
        vm: None,
        pages: 0,
        backing: Backing { cacheable: false, mapped: false },
        directory: Directory::new(0),
        first: 0,
    };
}

/// At most `N` slots of all VMs, with `G` granules in the directory of each region.
#[derive(Debug)]
pub struct Slots<const N: usize, const G: usize> {
    pool: Vec<Slot, N>,
    /// Places of the pool that are free again.
    free: Vec<u16, N>,
    ids: Keyed<N>,
    gfns: Keyed<N>,
    hosts: Hosts<N>,
    vms: Vec<Vm, MAX_VMS>,
    regions: [RegionOf<G>; MAX_VMS],
}

fn id_key(vm: VmId, id: u64) -> u64 {
    ((vm.index() as u64) << 16) + id
}

fn gfn_key(vm: VmId, gfn: u64) -> u64 {
    ((vm.index() as u64) << PAGE_BITS) + gfn.min(END)
}

impl<const N: usize, const G: usize> Slots<N, G> {
    /// Without VMs. All of it is zero, so that it takes no room in an image.
    pub const fn new() -> Self {
        const { assert!(N >= MAX_VMS * RESERVED && N <= u16::MAX as usize) };
        Self {
            pool: Vec::new(),
            free: Vec::new(),
            ids: Keyed::new(),
            gfns: Keyed::new(),
            hosts: Hosts::new(),
            vms: Vec::new(),
            regions: [const { RegionOf::NONE }; MAX_VMS],
        }
    }

    /// Slots of all VMs.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A VM's slot with this id.
    pub fn get(&self, vm: VmId, id: SlotId) -> Option<&Slot> {
        self.next(vm, id).filter(|slot| slot.id == id)
    }

    /// A VM's slot with this id, or the next.
    pub fn next(&self, vm: VmId, id: SlotId) -> Option<&Slot> {
        self.vm(vm).ok()?;
        let mut from = self.ids.range(id_key(vm, id.0.into())..id_key(vm, 1 << 16));
        self.pool.get(usize::from(from.next()?.1))
    }

    /// Slots of a VM that overlap guest frames, in their order.
    fn in_frames(&self, vm: VmId, gfn: u64, pages: u64) -> impl Iterator<Item = &Slot> {
        let before = self.gfns.floor(gfn_key(vm, gfn)).and_then(|place| self.pool.get(usize::from(place)));
        let before = before.filter(move |slot| slot.vm == vm && slot.gfn.0 < gfn && slot.end() > gfn);
        let within = self.gfns.range(gfn_key(vm, gfn)..gfn_key(vm, gfn.saturating_add(pages).min(END)));
        before.into_iter().chain(within.filter_map(|(_, place)| self.pool.get(usize::from(place))))
    }

    /// Gives a VM a region of so many pages; replaces none.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::RegionExists`]; [`Error::Wraps`] if it is longer than any may be, or empty;
    /// [`Error::NoRegion`] for an id that no region can have.
    pub fn region_make(&mut self, vm: VmId, region: Region, pages: u64, backing: Backing) -> Result<(), Error> {
        self.vm(vm)?;
        if pages == 0 || pages > END {
            return Err(Error::Wraps);
        }
        let index = usize::from(region.0);
        let place = self.regions.get_mut(index).ok_or(Error::NoRegion)?;
        if place.vm.is_some() {
            return Err(Error::RegionExists);
        }
        // In place: it is too large for a service's stack.
        (place.vm, place.pages, place.backing) = (Some(vm), pages, backing);
        place.directory.reset(pages);
        Ok(())
    }

    /// A region of this VM's.
    fn region(&self, vm: VmId, region: Region) -> Result<&RegionOf<G>, Error> {
        self.regions.get(usize::from(region.0)).filter(|of| of.vm == Some(vm)).ok_or(Error::NoRegion)
    }

    /// Puts a slot into the pool and all indices. There is room, and nothing overlaps it.
    fn put(&mut self, slot: Slot) {
        let place = match self.free.pop() {
            Some(place) => {
                if let Some(of) = self.pool.get_mut(usize::from(place)) {
                    *of = slot;
                }
                place
            }
            None => {
                let place = self.pool.len() as u16;
                let _ = self.pool.push(slot);
                place
            }
        };
        let start = slot.host.to_word();
        let _ = self.ids.insert(id_key(slot.vm, slot.id.0.into()), place);
        let _ = self.gfns.insert(gfn_key(slot.vm, slot.gfn.0), place);
        let _ = self.hosts.insert(start..start + slot.pages, place);
        let mut regions = self.regions.iter_mut().skip(usize::from(slot.host.region.0));
        if let Some(region) = regions.next() {
            region.directory.add(&slot.host_pages());
        }
        regions.for_each(|region| region.first += 1);
    }

    /// Takes a slot out of the pool and all indices.
    fn take(&mut self, slot: &Slot) {
        let Some(place) = self.ids.remove(id_key(slot.vm, slot.id.0.into())) else { return };
        self.gfns.remove(gfn_key(slot.vm, slot.gfn.0));
        self.hosts.remove(slot.host.to_word(), place);
        let _ = self.free.push(place);
        let (hosts, base) = (&self.hosts, HostAddress { region: slot.host.region, page: 0 }.to_word());
        let mut regions = self.regions.iter_mut().skip(usize::from(slot.host.region.0));
        if let Some(region) = regions.next() {
            region
                .directory
                .remove(&slot.host_pages(), |pages| hosts.any(&(base + pages.start..base + pages.end), 0, hosts.len()));
        }
        regions.for_each(|region| region.first = region.first.saturating_sub(1));
    }
}

impl<const N: usize, const G: usize> Default for Slots<N, G> {
    fn default() -> Self {
        Self::new()
    }
}

impl Error {
    /// What a caller is told.
    pub const fn status(self) -> Status {
        match self {
            Self::Unaligned | Self::Wraps | Self::BadFlags | Self::BadId | Self::PastEnd => Status::Invalid,
            Self::HostChanged | Self::SizeChanged | Self::ReadOnlyChanged | Self::GmemFixed => Status::Invalid,
            Self::Absent => Status::Invalid,
            Self::Overlaps | Self::RegionExists => Status::Exists,
            Self::Busy => Status::Busy,
            Self::Full => Status::Exhausted,
            Self::Incoherent => Status::Unsupported,
            Self::NoVm | Self::NoRegion | Self::NoSlot => Status::NotFound,
            Self::Machine(status) => status,
        }
    }
}

/// The guest frame at which a slot shows a page of its region.
fn shown_at(slot: &Slot, page: u64) -> Gfn {
    Gfn(slot.gfn.0 + page.saturating_sub(slot.host.page))
}

#[cfg(test)]
mod tests;
