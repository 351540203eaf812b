//! Write-back batches: frames that wait until the CPUs which may hold dirty lines of them have written back.
//!
//! A batch is {the CPUs that still owe}. A flush on a CPU, whatever asked for it, pays for every open batch.
//! A batch that nobody owes is paid by the first [`WriteBack`] for it.
//! The table is bounded; when it is full, frames join an open batch and its debts become the union.

use crate::prelude::*;

/// Open batches at the most.
pub const MAX_BATCHES: usize = 64;
/// Words of a set of CPUs.
pub const CPU_WORDS: usize = MAX_CPUS / 64;

/// A set of CPUs.
pub type CpuSet = [u64; CPU_WORDS];

#[derive(Clone, Copy, Debug)]
struct Batch {
    generation: u16,
    open: bool,
    vm: VmId,
    kind: VmKind,
    frames: u64,
    owed: CpuSet,
}

impl Batch {
    const CLOSED: Self =
        Self { generation: 0, open: false, vm: VmId::new(0, 0), kind: VmKind::Plain, frames: 0, owed: [0; CPU_WORDS] };

    fn id(&self, index: usize) -> BatchId {
        BatchId(index as u32 | u32::from(self.generation) << 16)
    }

    fn close(&mut self) {
        *self = Self { generation: self.generation.wrapping_add(1), ..Self::CLOSED };
    }
}

/// A batch as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its id.
    pub id: BatchId,
    /// The VM that its frames came from.
    pub vm: VmId,
    /// That VM's kind.
    pub kind: VmKind,
    /// How many wait.
    pub frames: u64,
    /// CPUs that still owe.
    pub owed: u16,
}

/// The table.
#[derive(Debug)]
pub struct Batches {
    slots: [Batch; MAX_BATCHES],
}

impl Batches {
    /// A table without open batches.
    pub const fn new() -> Self {
        Self { slots: [Batch::CLOSED; MAX_BATCHES] }
    }

    fn slot(&mut self, id: BatchId) -> Option<&mut Batch> {
        let index = (id.0 & 0xffff) as usize;
        self.slots.get_mut(index).filter(|slot| slot.open && slot.id(index) == id)
    }

    /// Whether this batch waits to be paid.
    pub fn is_open(&self, id: BatchId) -> bool {
        let index = (id.0 & 0xffff) as usize;
        self.slots.get(index).is_some_and(|slot| slot.open && slot.id(index) == id)
    }

    /// Whether [`open`](Self::open) will succeed for this kind of VM.
    ///
    /// # Errors
    /// As `open`.
    pub fn check_room(&self, kind: VmKind) -> Result<(), Status> {
        if self.slots.iter().any(|slot| !slot.open || slot.kind == kind) { Ok(()) } else { Err(Status::Busy) }
    }

    /// An open batch of this VM, or a new one; `owed` CPUs join its debts.
    ///
    /// # Errors
    /// [`Status::Busy`] if the table is full and no open batch is of this kind of VM.
    pub fn open(&mut self, vm: VmId, kind: VmKind, owed: &[u64]) -> Result<BatchId, Status> {
        let same = |slot: &Batch| slot.open && slot.kind == kind;
        let find = |fits: &dyn Fn(&Batch) -> bool| self.slots.iter().position(fits);
        let own = find(&|slot| same(slot) && slot.vm == vm);
        let index = own.or_else(|| find(&|slot| !slot.open)).or_else(|| find(&same)).ok_or(Status::Busy)?;
        let slot = self.slots.get_mut(index).ok_or(Status::Busy)?;
        if !slot.open {
            *slot = Batch { generation: slot.generation, open: true, vm, kind, ..Batch::CLOSED };
        }
        slot.owed.iter_mut().zip(owed).for_each(|(word, more)| *word |= more);
        Ok(slot.id(index))
    }

    /// Frames join an open batch.
    pub fn join(&mut self, id: BatchId, frames: u64) {
        if let Some(slot) = self.slot(id) {
            slot.frames += frames;
        }
    }

    /// The batch in a slot.
    pub fn get(&self, index: usize) -> Option<Open> {
        let slot = self.slots.get(index).filter(|slot| slot.open)?;
        let owed = slot.owed.iter().map(|word| word.count_ones() as u16).sum();
        Some(Open { id: slot.id(index), vm: slot.vm, kind: slot.kind, frames: slot.frames, owed })
    }

    /// The CPUs that owe for a batch. `None` if it isn't open.
    pub fn owed(&mut self, id: BatchId) -> Option<CpuSet> {
        self.slot(id).map(|slot| slot.owed)
    }

    /// A CPU wrote back: it owes nothing any more, for any batch that was open before it did. Batches that nobody
    /// owes now and that had debts are closed and named.
    pub fn pay(&mut self, cpu: usize, mut paid: impl FnMut(Open)) {
        let (word, bit) = (cpu / 64 % CPU_WORDS, 1 << (cpu % 64));
        for index in 0..MAX_BATCHES {
            let owing = self.slots.get_mut(index).filter(|slot| slot.owed[word] & bit != 0);
            let Some(slot) = owing else { continue };
            slot.owed[word] &= !bit;
            if let Some(open) = self.get(index).filter(|open| open.owed == 0) {
                self.slots[index].close();
                paid(open);
            }
        }
    }

    /// Closes a batch that nobody owes.
    ///
    /// # Errors
    /// [`Status::Busy`] if somebody does, [`Status::NotFound`] if it isn't open.
    pub fn settle(&mut self, id: BatchId) -> Result<Open, Status> {
        let open = self.get((id.0 & 0xffff) as usize).filter(|open| open.id == id).ok_or(Status::NotFound)?;
        if open.owed != 0 {
            return Err(Status::Busy);
        }
        self.slot(id).map(Batch::close);
        Ok(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flush_pays_every_batch_of_that_cpu_and_no_other() {
        let mut batches = Batches::new();
        let a = batches.open(VmId::new(0, 0), VmKind::Sev, &[0b11]).unwrap();
        let b = batches.open(VmId::new(1, 0), VmKind::Sev, &[0b01]).unwrap();
        let mut closed = heapless::Vec::<BatchId, 4>::new();
        batches.pay(0, |open| closed.push(open.id).unwrap());
        assert_eq!(closed.as_slice(), [b]);
        assert!(batches.is_open(a));
        assert_eq!(batches.settle(a), Err(Status::Busy));
        batches.pay(1, |open| closed.push(open.id).unwrap());
        assert_eq!(closed.as_slice(), [b, a]);
        assert!(!batches.is_open(a));
    }

    #[test]
    fn a_batch_that_nobody_owes_is_settled_once() {
        let mut batches = Batches::new();
        let id = batches.open(VmId::new(0, 0), VmKind::Plain, &[]).unwrap();
        batches.pay(0, |_| panic!("nothing was owed"));
        assert!(batches.settle(id).is_ok());
        assert_eq!(batches.settle(id), Err(Status::NotFound));
        let again = batches.open(VmId::new(0, 0), VmKind::Plain, &[]).unwrap();
        assert_ne!(id, again, "a slot's next batch has another generation");
    }

    #[test]
    fn a_full_table_merges_and_keeps_all_debts() {
        let mut batches = Batches::new();
        for n in 0..MAX_BATCHES as u16 {
            batches.open(VmId::new(n, 0), VmKind::Sev, &[0b01]).unwrap();
        }
        let merged = batches.open(VmId::new(0, 1), VmKind::Sev, &[0b10]).unwrap();
        assert_eq!(batches.owed(merged).unwrap()[0], 0b11);
        assert_eq!(batches.open(VmId::new(0, 2), VmKind::Plain, &[]), Err(Status::Busy));
    }
}
