//! Write-back batches: frames that wait until the CPUs which may hold dirty lines of them have written back.
//!
//! A batch is {the CPUs that still owe}. A flush on a CPU, whatever asked for it, pays for every open batch.
//! A batch that nobody owes is paid by the first [`WriteBack`] for it.
//! The table is bounded; when it is full, frames join an open batch and its debts become the union.

use crate::prelude::*;

/// Open batches at the most.
pub const MAX_BATCHES: usize = 64;

/// What pays for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payable {
    /// Any flush.
    WriteBack,
    /// Only WBINVD.
    Invalidate,
    /// Nothing yet: translations of its frames may be in use until the event is over that they were unmapped in.
    Never,
}

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
    /// What pays.
    pub payable: Payable,
    open: bool,
}

impl Batch {
    const NONE: Self = {
        // The first generation is 0.
        let (id, vm, kind, owed) = (BatchId(0xffff << 16), VmId::new(0, 0), VmKind::Plain, CpuSet::EMPTY);
        Self { id, vm, kind, frames: 0, owed, payable: Payable::WriteBack, open: false }
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

    /// Where [`open`](Self::open) will put what comes from this VM.
    ///
    /// # Errors
    /// As `open`.
    pub fn place(&self, vm: VmId, kind: VmKind, payable: Payable) -> Result<usize, Status> {
        let same = |slot: &Batch| slot.open && (slot.kind, slot.payable) == (kind, payable);
        let find = |fits: &dyn Fn(&Batch) -> bool| self.slots.iter().position(fits);
        let own = find(&|slot| same(slot) && slot.vm == vm).or_else(|| find(&|slot| !slot.open));
        own.or_else(|| find(&same).filter(|_| payable != Payable::Never)).ok_or(Status::Busy)
    }

    /// An open batch of this VM, or a new one; `owed` CPUs join its debts.
    ///
    /// # Errors
    /// [`Status::Busy`] if the table is full and no open batch is of this kind of VM and is paid so; one that isn't payable yet
    /// must be of this VM.
    pub fn open(&mut self, vm: VmId, kind: VmKind, owed: &CpuSet, payable: Payable) -> Result<BatchId, Status> {
        let index = self.place(vm, kind, payable)?;
        let slot = self.slots.get_mut(index).ok_or(Status::Busy)?;
        if !slot.open {
            let id = BatchId((slot.id.0 & !0xffff).wrapping_add(1 << 16) | index as u32);
            *slot = Batch { id, vm, kind, payable, open: true, ..Batch::NONE };
        }
        slot.owed.unite(owed);
        Ok(slot.id)
    }

    /// What was unmapped in an event of this VM that goes on.
    pub fn held(&self, vm: VmId) -> Option<BatchId> {
        let held = |slot: &&Batch| slot.open && slot.payable == Payable::Never && slot.vm == vm;
        self.slots.iter().find(held).map(|slot| slot.id)
    }

    /// The event is over: these CPUs owe a write-back. Returns how many frames wait.
    pub fn release(&mut self, id: BatchId, owed: &CpuSet) -> u64 {
        self.slot(id).map_or(0, |slot| {
            slot.payable = Payable::WriteBack;
            slot.owed.unite(owed);
            slot.frames
        })
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
        let payable = |slot: &&mut Batch| slot.open && (invalidated || slot.payable != Payable::Invalidate);
        let mut debts = self.slots.iter_mut().filter(payable);
        let slot = debts.find_map(|slot| (slot.owed.remove(cpu) && slot.owed == CpuSet::EMPTY).then_some(slot))?;
        slot.open = false;
        Some(*slot)
    }

    /// Closes a batch that nobody owes.
    ///
    /// # Errors
    /// [`Status::Busy`] if somebody does or it isn't payable, [`Status::NotFound`] if it isn't open.
    pub fn settle(&mut self, id: BatchId) -> Result<Batch, Status> {
        let slot = self.slot(id).ok_or(Status::NotFound)?;
        ensure(slot.owed == CpuSet::EMPTY && slot.payable != Payable::Never, Status::Busy)?;
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
        let recycling = batches.open(VmId::new(0, 0), VmKind::Plain, &cpus(&[0]), Payable::Invalidate).unwrap();
        let plain = batches.open(VmId::new(0, 0), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack).unwrap();
        assert_ne!(recycling, plain, "frames never wait for it");
        assert_eq!(batches.pay(CpuId(0), false), None, "WBNOINVD is too weak");
        let paid = batches.pay(CpuId(0), true);
        assert_eq!(paid.map(|open| (open.id, open.payable)), Some((recycling, Payable::Invalidate)));
    }

    #[test]
    fn one_flush_pays_every_batch_of_that_cpu_and_no_other() {
        let mut batches = Batches::new();
        let a = batches.open(VmId::new(0, 0), VmKind::Sev, &cpus(&[0, 1]), Payable::WriteBack).unwrap();
        let b = batches.open(VmId::new(1, 0), VmKind::Sev, &cpus(&[0]), Payable::WriteBack).unwrap();
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
        let id = batches.open(VmId::new(0, 0), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack).unwrap();
        assert_eq!(batches.pay(CpuId(0), false), None, "nothing was owed");
        assert!(batches.settle(id).is_ok());
        assert_eq!(batches.settle(id), Err(Status::NotFound));
        let again = batches.open(VmId::new(0, 0), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack).unwrap();
        assert_ne!(id, again, "a slot's next batch has another generation");
    }

    #[test]
    fn a_full_table_merges_and_keeps_all_debts() {
        let mut batches = Batches::new();
        for n in 0..MAX_BATCHES as u16 {
            batches.open(VmId::new(n, 0), VmKind::Sev, &cpus(&[0]), Payable::WriteBack).unwrap();
        }
        let merged = batches.open(VmId::new(0, 1), VmKind::Sev, &cpus(&[1]), Payable::WriteBack).unwrap();
        assert_eq!(batches.find(merged).map(|open| open.owed), Some(cpus(&[0, 1])));
        assert_eq!(batches.open(VmId::new(0, 2), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack), Err(Status::Busy));
    }
}
