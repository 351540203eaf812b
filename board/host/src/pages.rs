//! Who has which page of memory: what is checked and told to the caches where nested tables change.

use caisson_core::machine::{Removed, TablePool};
use caisson_core::svm::npt::{self, Tree};
use caisson_proto::addr::{Frame, PAGE_SIZE};
use caisson_proto::kernel::Access;
use caisson_proto::layout;

use crate::config::Mutant;
use crate::hardware::Hardware;
use crate::mutate;
use crate::place::Hand;
use crate::world::View;

impl Hardware<'_> {
    /// A page becomes a guest's.
    pub(crate) fn take_page(&self, root: Frame, gfn: u64, frame: u64) {
        let world = self.world;
        let before = world.owner.borrow_mut().insert(frame, (root.0, gfn));
        world.check(before.is_none(), || format!("frame {frame:#x} is mapped in two places of guests: {before:?}"));
        world.check_host(frame, "is mapped");
        world.check(!world.adopted.borrow().contains(&frame), || format!("frame {frame:#x} of the kernel's is mapped"));
        let vm = world.vm_of_root(root).map_or(u32::MAX, |(_, vm)| vm.bits());
        world.caches.borrow_mut().give(frame, Hand::Shared(vm));
        let reads = world.caches.borrow().peek(frame);
        let filled = world.filled.borrow_mut().remove(&frame);
        let expected = filled.unwrap_or(0);
        world.check(reads == expected, || {
            format!(
                "frame {frame:#x} given out reads {reads:#x} instead of {}",
                if expected == 0 { "zero" } else { "its contents" }
            )
        });
        world.check(!world.broken.borrow().contains(&frame), || format!("broken frame {frame:#x} is mapped"));
        if filled.is_some() {
            world.memory.borrow_mut().insert((vm, gfn), filled);
        }
    }

    /// Pages are no guest's any more.
    pub(crate) fn lose_pages(&self, root: Frame, removed: &Removed) {
        let vm = self.world.vm_of_root(root);
        self.world.check(vm.is_some(), || format!("root {:#x} is no VM's", root.0));
        for page in 0..removed.pages {
            let (gfn, frame) = (removed.gfn.0 + page, removed.frame.0 + page);
            let owner = self.world.owner.borrow_mut().remove(frame);
            self.world.check(owner == Some((root.0, gfn)), || format!("frame {frame:#x} is taken from {owner:?}"));
            if let Some((_, vm)) = vm {
                self.world.memory.borrow_mut().remove((vm.bits(), gfn));
                self.world.spoiled.borrow_mut().remove(&(vm.bits(), gfn));
            }
            self.world.caches.borrow_mut().give(frame, Hand::Nobody);
        }
        if let Some((slot, _)) = vm {
            mutate::unmapping(self.world, self.cpu, slot);
        }
        if self.world.breaks(Mutant::KeptMapping) && self.world.rng.chance(1, 4) {
            self.keep(root, removed);
        }
    }

    /// What a page has that was lent to the service that runs here.
    pub(crate) fn leased(&self, page: u64) -> Option<u64> {
        let world = self.world;
        let slot = world.cpus.get(self.cpu)?.space.get();
        let (from, lease) = *world.lent.borrow().get(&slot)?;
        let at = page.checked_sub(layout::LEASE / PAGE_SIZE).filter(|at| *at < lease.pages)?;
        Some(world.pages.borrow().get(&(from, lease.page.0 + at)).copied().unwrap_or(0))
    }

    /// A frame that nobody sees yet has contents.
    pub(crate) fn fill_page(&self, frame: u64, value: u64) {
        let world = self.world;
        world.check_host(frame, "is filled");
        let owner = world.owner.borrow().get(frame);
        world.check(owner.is_none(), || format!("frame {frame:#x} is filled under a guest"));
        world.caches.borrow_mut().write(self.cpu, frame, 0, 0, value);
        world.filled.borrow_mut().insert(frame, value);
        self.pause();
    }

    /// Root of the VM that a service handles.
    pub(crate) fn root_of(&self, slot: usize) -> Frame {
        let mut vms = self.world.kernel.vms.iter();
        let own = vms.find(|vm| vm.state().is_some() && vm.handler.get().index() == slot);
        own.and_then(|vm| vm.root(0)).unwrap_or(Frame(0))
    }

    /// Mutant: the entry stays.
    fn keep(&self, root: Frame, removed: &Removed) {
        struct Nothing;
        impl TablePool for Nothing {
            fn take(&mut self) -> Option<Frame> {
                None
            }
            fn give_back(&mut self, _: Frame) {}
        }
        let access = Access::READ | Access::WRITE;
        let tree = Tree::nested(root);
        let _ = npt::map(&mut View(self.world), tree, removed.gfn, removed.frame, removed.pages, access, &mut Nothing);
    }
}
