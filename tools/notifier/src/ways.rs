//! Three ways to serve an event and a fault.

use std::ops::Range;

use caisson_core::invalidation::Invalidation;
use caisson_memory::slots::coherence::{Backing, Host};
use caisson_memory::slots::{self, Answer, HostRange, Machine, Slots, Taken, Wanted};
use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::memory::SlotFlags;
use caisson_proto::slots::{GmemAddress, HostAddress, Region, SlotId};

use crate::counts::Counts;
use crate::layout::{LENGTH, REGION, start};
use crate::locks::{Alone, Shared};
use crate::tree::Tree;
use crate::vm::Vm;

const VM: VmId = VmId::new(0, 0);
const HOST: Host = Host { coherent: false };
/// Pages that a call unmaps at the most.
pub const MOST: u64 = 512;

/// The ranges of so many slots.
pub fn ranges(slots: u64) -> Vec<Range<u64>> {
    (0..slots).map(|slot| start(slot, slots)..start(slot, slots) + LENGTH).collect()
}

/// Caisson's: memory's own slot table.
pub struct Caisson {
    slots: Box<Slots<{ slots::CAPACITY }, { slots::GRANULES }>>,
    /// The VM and its rule, which are the kernel's.
    pub kernel: Kernel,
}

/// What memory asks.
pub struct Kernel {
    /// The VM.
    pub vm: Vm,
    invalidation: Invalidation,
}

impl Machine for Kernel {
    fn begin(&mut self, _: VmId, start: Gfn, end: Gfn) -> Result<(), Status> {
        self.invalidation.begin(start, end)
    }
    fn unmap(&mut self, _: VmId, gfn: Gfn, pages: u64, most: u64) -> Result<Taken, Status> {
        let (pages, next) = self.vm.unmap(gfn.0..gfn.0 + pages, most);
        Ok(Taken { pages, next: Gfn(next) })
    }
    fn flush(&mut self, _: VmId) {
        self.vm.flush();
    }
    fn end(&mut self, _: VmId) {
        // One was begun.
        let _ = self.invalidation.end();
    }
    fn reclaimed(&mut self, _: VmId) {
        self.vm.tell();
    }
}

impl Caisson {
    /// With these slots, in a region of so many pages.
    ///
    /// # Errors
    /// What the table refused.
    pub fn new(ranges: &[Range<u64>], pages: u64, vm: Vm) -> Result<Self, slots::Error> {
        let mut slots = Box::new(Slots::new());
        slots.vm_make(VM)?;
        slots.region_make(VM, Region(0), pages, Backing::ORDINARY)?;
        for (id, range) in ranges.iter().enumerate() {
            let wanted = Wanted {
                id: SlotId(id as u16),
                flags: SlotFlags::empty(),
                gfn: Gfn(range.start),
                pages: range.end - range.start,
                host: HostAddress { region: Region(0), page: range.start },
                gmem: GmemAddress::default(),
            };
            slots.set(VM, &wanted, HOST)?;
        }
        Ok(Self { slots, kernel: Kernel { vm, invalidation: Invalidation::new() } })
    }

    /// One call of an event. True if there is more.
    pub fn event(&mut self, range: &Range<u64>) -> bool {
        let range = HostRange { region: Region(0), pages: range.clone() };
        self.slots.event(&range, MOST, &mut self.kernel) == Ok(Answer::More)
    }

    /// A fault. False if it has to be repeated.
    pub fn fault(&self, gfn: u64) -> bool {
        let shown = self.slots.fault(VM, Gfn(gfn), HOST);
        let changes = &self.kernel.invalidation;
        shown.is_ok() && self.kernel.vm.map(changes.commit(changes.sequence(), Gfn(gfn), 1).is_ok(), gfn)
    }
}

/// Linux's: slots under a read lock, in an interval tree; what is mapped under another, taken to write only if a
/// slot overlaps. Begin and end are two calls, and each looks at the slots.
#[derive(Debug)]
pub struct Linux {
    /// The read lock stands for SRCU, and begin's and end's counts for those who swap slots are left out: both in Linux's favour.
    slots: Shared<(Tree, Vec<Range<u64>>)>,
    mmu: Shared<Counts>,
    /// The VM.
    pub vm: Vm,
}

impl Linux {
    /// With these slots.
    pub fn new(ranges: &[Range<u64>], vm: Vm) -> Self {
        Self { slots: Shared::new((Tree::new(ranges), ranges.to_vec())), mmu: Shared::new(Counts::default()), vm }
    }

    /// An event.
    pub fn event(&self, range: &Range<u64>) {
        let (mut guard, mut taken) = (None, 0);
        let slots = self.slots.read();
        slots.0.overlapping(range, &mut |slot| {
            let part = slot.start.max(range.start)..slot.end.min(range.end);
            let mmu = guard.get_or_insert_with(|| self.mmu.write());
            if taken > 0 {
                mmu.join(&part)
            } else {
                mmu.begin(&part)
            }
            taken += 1;
            let (pages, _) = self.vm.unmap(part, u64::MAX);
            taken += pages << 32;
        });
        if taken >> 32 > 0 {
            self.vm.flush();
        }
        drop(guard);
        if taken > 0 {
            self.vm.tell();
        }
        drop(slots);
        let mut guard = None;
        let slots = self.slots.read();
        slots.0.overlapping(range, &mut |_| {
            guard.get_or_insert_with(|| self.mmu.write());
        });
        if let Some(mmu) = &mut guard {
            mmu.end();
        }
    }

    /// A fault. False if it has to be repeated.
    pub fn fault(&self, gfn: u64) -> bool {
        let slots = self.slots.read();
        let after = slots.1.partition_point(|slot| slot.start <= gfn);
        let there = after.checked_sub(1).and_then(|at| slots.1.get(at)).is_some_and(|slot| slot.end > gfn);
        if !there {
            return false;
        }
        let mmu = self.mmu.read();
        self.vm.map(mmu.may_commit(mmu.sequence(), gfn), gfn)
    }
}

/// The naive one: one lock, taken first; each slot is flushed by itself.
#[derive(Debug)]
pub struct Naive {
    all: Alone<(Tree, Vec<Range<u64>>, Counts)>,
    /// The VM.
    pub vm: Vm,
}

impl Naive {
    /// With these slots.
    pub fn new(ranges: &[Range<u64>], vm: Vm) -> Self {
        Self { all: Alone::new((Tree::new(ranges), ranges.to_vec(), Counts::default())), vm }
    }

    /// An event.
    pub fn event(&self, range: &Range<u64>) {
        let mut all = self.all.lock();
        let (tree, _, counts) = &mut *all;
        counts.begin(range);
        tree.overlapping(range, &mut |slot| {
            let part = slot.start.max(range.start)..slot.end.min(range.end);
            if self.vm.unmap(part, u64::MAX).0 > 0 {
                self.vm.flush();
            }
        });
        self.vm.tell();
        drop(all);
        self.all.lock().2.end();
    }

    /// A fault. False if it has to be repeated.
    pub fn fault(&self, gfn: u64) -> bool {
        let all = self.all.lock();
        let after = all.1.partition_point(|slot| slot.start <= gfn);
        let there = after.checked_sub(1).and_then(|at| all.1.get(at)).is_some_and(|slot| slot.end > gfn);
        there && self.vm.map(all.2.may_commit(all.2.sequence(), gfn), gfn)
    }
}

/// All three, with the same slots.
pub struct Ways {
    /// Caisson's.
    pub caisson: Caisson,
    /// Linux's.
    pub linux: Linux,
    /// The naive one.
    pub naive: Naive,
}

impl Ways {
    /// Of so many slots and vCPUs.
    ///
    /// # Errors
    /// What the table refused.
    pub fn new(slots: u64, vcpus: usize) -> Result<Self, String> {
        let (ranges, vm) = (ranges(slots), || Vm::new(REGION, vcpus));
        Ok(Self {
            caisson: Caisson::new(&ranges, REGION, vm()).map_err(|error| format!("{slots} slots: {error:?}"))?,
            linux: Linux::new(&ranges, vm()),
            naive: Naive::new(&ranges, vm()),
        })
    }
}
