//! Where frames are mapped in guests, as the machine saw it happen.

use std::collections::BTreeMap;

use caisson_core::frames::Frames;
use caisson_proto::addr::{Frame, VmId};
use caisson_proto::kernel::{FrameState, VmKind};

use crate::bits::Bits;
use crate::world::World;

/// Root and gfn.
pub type Place = (u64, u64);

/// A place for each frame that is mapped.
#[derive(Debug, Default)]
pub struct Owners {
    places: Vec<Option<Place>>,
    mapped: Bits,
    /// Frames mapped under each root.
    roots: BTreeMap<u64, u64>,
    count: u64,
}

impl Owners {
    /// Of a machine of so many frames.
    pub fn new(frames: u64) -> Self {
        Self { places: vec![None; frames as usize], mapped: Bits::new(frames), ..Self::default() }
    }

    /// Where a frame is mapped.
    pub fn get(&self, frame: u64) -> Option<Place> {
        self.places.get(frame as usize).copied().flatten()
    }

    /// It is mapped. Where it was before.
    pub fn insert(&mut self, frame: u64, place: Place) -> Option<Place> {
        let before = self.remove(frame);
        if self.places.len() <= frame as usize {
            self.places.resize(frame as usize + 1, None);
        }
        self.places[frame as usize] = Some(place);
        self.mapped.insert(frame);
        *self.roots.entry(place.0).or_default() += 1;
        self.count += 1;
        before
    }

    /// It isn't any more. Where it was.
    pub fn remove(&mut self, frame: u64) -> Option<Place> {
        let place = self.places.get_mut(frame as usize)?.take()?;
        self.mapped.remove(frame);
        self.count -= 1;
        if let Some(left) = self.roots.get_mut(&place.0) {
            *left -= 1;
        }
        Some(place)
    }

    /// How many frames are mapped.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether any is under a root.
    pub fn has_root(&self, root: u64) -> bool {
        self.roots.get(&root).is_some_and(|left| *left > 0)
    }

    /// All, by frame.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Place)> {
        self.mapped.iter().filter_map(|frame| Some((frame, self.get(frame)?)))
    }
}

impl World {
    /// Whether something is mapped in a VM at this gfn.
    pub fn owns(&self, vm: VmId, gfn: u64) -> bool {
        let root = self.kernel.vms.get(vm.index()).and_then(|vm| vm.root(0));
        let Some(root) = root.filter(|root| self.owner.borrow().has_root(root.0)) else { return false };
        let mapped = self.nested(root, gfn);
        mapped.is_some_and(|it| self.owner.borrow().get(it.frame.0) == Some((root.0, gfn)))
    }

    /// Whether a gfn of a VM is private, as far as that can be said now.
    pub fn is_private(&self, vm: VmId, gfn: u64) -> bool {
        let root = self.kernel.vms.get(vm.index()).and_then(|vm| vm.root(0));
        let mapped = root.and_then(|root| self.nested(root, gfn));
        mapped.is_some_and(|it| self.frame(it.frame).is_none_or(|is| is == Frames::of(FrameState::Private, vm)))
    }

    /// Whether a VM has a key of its own.
    pub fn is_encrypted(&self, vm: VmId) -> bool {
        let handler = self.kernel.vms.get(vm.index()).map(|vm| vm.handler.get().index());
        let service = handler.and_then(|slot| self.manifest.services.get(slot));
        service.is_some_and(|service| service.kind != VmKind::Plain)
    }

    /// The VM that a nested root belongs to: slot and id.
    pub fn vm_of_root(&self, root: Frame) -> Option<(usize, VmId)> {
        let mut vms = self.kernel.vms.iter().enumerate();
        vms.find(|(_, vm)| vm.state().is_some() && vm.root(0) == Some(root)).map(|(slot, vm)| (slot, vm.id.get()))
    }
}
