//! Write-back batches: frames that wait until the CPUs which may hold dirty lines of them have written back.
//!
//! A batch is {the CPUs that still owe}. A flush on a CPU, whatever asked for it, pays for every open batch.
//! A batch that nobody owes is paid by the first [`WriteBack`] for it.
//! The table is bounded; when it is full, frames join an open batch and its debts become the union.

use crate::prelude::*;

/// Open batches at the most.
pub const MAX_BATCHES: usize = 64;

/// A batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its id. Each batch in a slot has another generation.
    pub id: BatchId,
    /// The VM that its frames came from.
    pub vm: VmId,
    /// That VM's kind.
    pub kind: VmKind,
    /// How many wait.
    pub frames: u64,
    /// CPUs that still owe.
    pub owed: CpuSet,
    /// Only WBINVD pays.
    pub invalidate: bool,
    open: bool,
}

impl Batch {
    const NONE: Self = {
        // The first generation is 0.
        let (id, vm, kind, owed) = (BatchId(0xffff << 16), VmId::new(0, 0), VmKind::Plain, CpuSet::EMPTY);
        Self { id, vm, kind, frames: 0, owed, invalidate: false, open: false }
    };
}

/// The table.
pub struct Batches {
    slots: [Batch; MAX_BATCHES],
}

impl Batches {
    /// A table without open batches.
    pub const fn new() -> Self {
        Self { slots: [Batch::NONE; MAX_BATCHES] }
    }

    fn slot(&mut self, id: BatchId) -> Option<&mut Batch> {
        self.slots.get_mut((id.0 & 0xffff) as usize).filter(|slot| slot.open && slot.id == id)
    }

    /// An open batch.
    pub fn find(&self, id: BatchId) -> Option<&Batch> {
        self.get((id.0 & 0xffff) as usize).filter(|open| open.id == id)
    }

    /// Whether [`open`](Self::open) will succeed for this kind of VM.
    ///
    /// # Errors
    /// As `open`.
    pub fn check_room(&self, kind: VmKind) -> Outcome {
        ensure(self.slots.iter().any(|slot| !slot.open || slot.kind == kind && !slot.invalidate), Status::Busy)
    }

    /// An open batch of this VM, or a new one; `owed` CPUs join its debts. With `invalidate`, one which only WBINVD pays.
    ///
    /// # Errors
    /// [`Status::Busy`] if the table is full and no open batch is of this kind of VM.
    pub fn open(&mut self, vm: VmId, kind: VmKind, owed: &CpuSet, invalidate: bool) -> Result<BatchId, Status> {
        let same = |slot: &Batch| slot.open && (slot.kind, slot.invalidate) == (kind, invalidate);
        let find = |fits: &dyn Fn(&Batch) -> bool| self.slots.iter().position(fits);
        let own = find(&|slot| same(slot) && slot.vm == vm);
        let index = own.or_else(|| find(&|slot| !slot.open)).or_else(|| find(&same)).ok_or(Status::Busy)?;
        let slot = self.slots.get_mut(index).ok_or(Status::Busy)?;
        if !slot.open {
            let id = BatchId((slot.id.0 & !0xffff).wrapping_add(1 << 16) | index as u32);
            *slot = Batch { id, vm, kind, invalidate, open: true, ..Batch::NONE };
        }
        slot.owed.unite(owed);
        Ok(slot.id)
    }

    /// Frames join an open batch.
    pub fn join(&mut self, id: BatchId, frames: u64) {
        if let Some(slot) = self.slot(id) {
            slot.frames += frames;
        }
    }

    /// The batch in a slot.
    pub fn get(&self, index: usize) -> Option<&Batch> {
        self.slots.get(index).filter(|slot| slot.open)
    }

    /// A CPU wrote back, or did so by WBINVD: it owes nothing any more, for any batch that was open before it did. Ask until
    /// there is none: each answer is a batch that had debts and that nobody owes now. It is closed.
    pub fn pay(&mut self, cpu: CpuId, invalidated: bool) -> Option<Batch> {
        let payable = |slot: &&mut Batch| slot.open && (invalidated || !slot.invalidate);
        let mut debts = self.slots.iter_mut().filter(payable);
        let slot = debts.find_map(|slot| (slot.owed.remove(cpu) && slot.owed == CpuSet::EMPTY).then_some(slot))?;
        slot.open = false;
        Some(*slot)
    }

    /// Closes a batch that nobody owes.
    ///
    /// # Errors
    /// [`Status::Busy`] if somebody does, [`Status::NotFound`] if it isn't open.
    pub fn settle(&mut self, id: BatchId) -> Result<Batch, Status> {
        let slot = self.slot(id).ok_or(Status::NotFound)?;
        ensure(slot.owed == CpuSet::EMPTY, Status::Busy)?;
        slot.open = false;
        Ok(*slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(numbers: &[u16]) -> CpuSet {
        CpuSet::of(numbers.iter().copied().map(CpuId))
    }

    #[test]
    fn only_wbinvd_pays_what_only_wbinvd_pays() {
        let mut batches = Batches::new();
        let recycling = batches.open(VmId::new(0, 0), VmKind::Plain, &cpus(&[0]), true).unwrap();
        let plain = batches.open(VmId::new(0, 0), VmKind::Plain, &CpuSet::EMPTY, false).unwrap();
        assert_ne!(recycling, plain, "frames never wait for it");
        assert_eq!(batches.pay(CpuId(0), false), None, "WBNOINVD is too weak");
        let paid = batches.pay(CpuId(0), true);
        assert_eq!(paid.map(|open| (open.id, open.invalidate)), Some((recycling, true)));
    }

    #[test]
    fn one_flush_pays_every_batch_of_that_cpu_and_no_other() {
        let mut batches = Batches::new();
        let a = batches.open(VmId::new(0, 0), VmKind::Sev, &cpus(&[0, 1]), false).unwrap();
        let b = batches.open(VmId::new(1, 0), VmKind::Sev, &cpus(&[0]), false).unwrap();
        let mut closed = heapless::Vec::<BatchId, 4>::new();
        while let Some(open) = batches.pay(CpuId(0), false) {
            closed.push(open.id).unwrap();
        }
        assert_eq!(closed.as_slice(), [b]);
        assert!(batches.find(a).is_some());
        assert_eq!(batches.settle(a), Err(Status::Busy));
        while let Some(open) = batches.pay(CpuId(1), false) {
            closed.push(open.id).unwrap();
        }
        assert_eq!(closed.as_slice(), [b, a]);
        assert!(batches.find(a).is_none());
    }

    #[test]
    fn a_batch_that_nobody_owes_is_settled_once() {
        let mut batches = Batches::new();
        let id = batches.open(VmId::new(0, 0), VmKind::Plain, &CpuSet::EMPTY, false).unwrap();
        assert_eq!(batches.pay(CpuId(0), false), None, "nothing was owed");
        assert!(batches.settle(id).is_ok());
        assert_eq!(batches.settle(id), Err(Status::NotFound));
        let again = batches.open(VmId::new(0, 0), VmKind::Plain, &CpuSet::EMPTY, false).unwrap();
        assert_ne!(id, again, "a slot's next batch has another generation");
    }

    #[test]
    fn a_full_table_merges_and_keeps_all_debts() {
        let mut batches = Batches::new();
        for n in 0..MAX_BATCHES as u16 {
            batches.open(VmId::new(n, 0), VmKind::Sev, &cpus(&[0]), false).unwrap();
        }
        let merged = batches.open(VmId::new(0, 1), VmKind::Sev, &cpus(&[1]), false).unwrap();
        assert_eq!(batches.find(merged).map(|open| open.owed), Some(cpus(&[0, 1])));
        assert_eq!(batches.open(VmId::new(0, 2), VmKind::Plain, &CpuSet::EMPTY, false), Err(Status::Busy));
    }
}
