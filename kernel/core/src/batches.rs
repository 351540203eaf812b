//! Write-back batches: frames that wait until the CPUs which may hold dirty lines of them have written back.
//!
//! A batch is {the CPUs that still owe}. A flush on a CPU, whatever asked for it, pays for every open batch.
//! A batch that nobody owes is paid by the first [`WriteBack`](caisson_proto::kernel::WriteBack) for it.
//! The table is bounded; when it is full, frames join an open batch and its debts become the union.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use caisson_proto::abi::{MAX_CPUS, Status};
use caisson_proto::addr::{BatchId, VmId};
use caisson_proto::kernel::VmKind;

/// Open batches at the most.
pub const MAX_BATCHES: usize = 64;
/// Words of a set of CPUs.
pub const CPU_WORDS: usize = MAX_CPUS / 64;

/// A set of CPUs; short slices mean no CPU beyond them.
pub type CpuSet<'a> = &'a [u64];

#[derive(Debug)]
struct Batch {
    /// Generation of the batch in this slot, its low bit set while it is open.
    life: AtomicU32,
    vm: AtomicU32,
    kind: AtomicU32,
    frames: AtomicU64,
    owed: [AtomicU64; CPU_WORDS],
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
        Self {
            slots: [const {
                Batch {
                    life: AtomicU32::new(0),
                    vm: AtomicU32::new(0),
                    kind: AtomicU32::new(0),
                    frames: AtomicU64::new(0),
                    owed: [const { AtomicU64::new(0) }; CPU_WORDS],
                }
            }; MAX_BATCHES],
        }
    }

    fn slot(&self, id: BatchId) -> Option<&Batch> {
        self.slots
            .get((id.0 & 0xffff) as usize)
            .filter(|slot| slot.life.load(Ordering::Acquire) == (id.0 >> 16 << 1 | 1))
    }

    /// Whether this batch waits to be paid.
    pub fn is_open(&self, id: BatchId) -> bool {
        self.slot(id).is_some()
    }

    /// Whether [`open`](Self::open) will succeed for this kind of VM. Under the table lock.
    ///
    /// # Errors
    /// As `open`.
    pub fn check_room(&self, kind: VmKind) -> Result<(), Status> {
        let fits = |slot: &Batch| {
            slot.life.load(Ordering::Acquire) & 1 == 0 || slot.kind.load(Ordering::Relaxed) == kind as u32
        };
        if self.slots.iter().any(fits) { Ok(()) } else { Err(Status::Busy) }
    }

    /// An open batch of this VM, or a new one; `owed` CPUs join its debts. Under the table lock.
    ///
    /// # Errors
    /// [`Status::Busy`] if the table is full and no open batch is of this kind of VM.
    pub fn open(&self, vm: VmId, kind: VmKind, owed: CpuSet) -> Result<BatchId, Status> {
        let same = |strict: bool| {
            self.slots.iter().position(|slot| {
                slot.life.load(Ordering::Acquire) & 1 == 1
                    && slot.kind.load(Ordering::Relaxed) == kind as u32
                    && (!strict || slot.vm.load(Ordering::Relaxed) == vm.bits())
            })
        };
        let unused = || self.slots.iter().position(|slot| slot.life.load(Ordering::Acquire) & 1 == 0);
        let index = same(true).or_else(unused).or_else(|| same(false)).ok_or(Status::Busy)?;
        let slot = self.slots.get(index).ok_or(Status::Busy)?;
        for (word, more) in slot.owed.iter().zip(owed) {
            word.fetch_or(*more, Ordering::AcqRel);
        }
        let mut life = slot.life.load(Ordering::Acquire);
        if life & 1 == 0 {
            slot.vm.store(vm.bits(), Ordering::Relaxed);
            slot.kind.store(kind as u32, Ordering::Relaxed);
            slot.frames.store(0, Ordering::Relaxed);
            life = (life + 1) & 0x1_ffff;
            slot.life.store(life, Ordering::Release);
        }
        Ok(BatchId(index as u32 | life >> 1 << 16))
    }

    /// Frames join an open batch.
    pub fn join(&self, id: BatchId, frames: u64) {
        if let Some(slot) = self.slot(id) {
            slot.frames.fetch_add(frames, Ordering::AcqRel);
        }
    }

    /// The batch in a slot.
    pub fn get(&self, index: usize) -> Option<Open> {
        let slot = self.slots.get(index)?;
        let life = slot.life.load(Ordering::Acquire);
        let kind = VmKind::ALL.get(slot.kind.load(Ordering::Relaxed) as usize).copied()?;
        (life & 1 == 1).then(|| Open {
            id: BatchId(index as u32 | life >> 1 << 16),
            vm: VmId::from_bits(slot.vm.load(Ordering::Relaxed)),
            kind,
            frames: slot.frames.load(Ordering::Acquire),
            owed: slot.owed.iter().map(|word| word.load(Ordering::Acquire).count_ones() as u16).sum(),
        })
    }

    /// The CPUs that owe for a batch, a word of 64 at a time. `None` if it isn't open.
    pub fn owed(&self, id: BatchId) -> Option<[u64; CPU_WORDS]> {
        let slot = self.slot(id)?;
        let mut owed = [0; CPU_WORDS];
        for (word, cell) in owed.iter_mut().zip(&slot.owed) {
            *word = cell.load(Ordering::Acquire);
        }
        Some(owed)
    }

    /// A CPU wrote back: it owes nothing any more, for any batch that was open before it did. Batches that nobody
    /// owes now and that had debts are closed and named. Under the table lock.
    pub fn pay(&self, cpu: usize, mut paid: impl FnMut(Open)) {
        let (word, bit) = (cpu / 64 % CPU_WORDS, 1 << (cpu % 64));
        for (index, slot) in self.slots.iter().enumerate() {
            let owed = slot.owed.get(word).is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0);
            if let Some(open) = self.get(index)
                && owed
                && open.owed == 0
            {
                self.close(open.id);
                paid(open);
            }
        }
    }

    /// Closes a batch that nobody owes. Under the table lock.
    ///
    /// # Errors
    /// [`Status::Busy`] if somebody does, [`Status::NotFound`] if it isn't open.
    pub fn settle(&self, id: BatchId) -> Result<Open, Status> {
        let open = self.get((id.0 & 0xffff) as usize).filter(|open| open.id == id).ok_or(Status::NotFound)?;
        if open.owed != 0 {
            return Err(Status::Busy);
        }
        self.close(id);
        Ok(open)
    }

    fn close(&self, id: BatchId) {
        if let Some(slot) = self.slot(id) {
            let life = slot.life.load(Ordering::Acquire);
            slot.life.store((life + 1) & 0x1_ffff, Ordering::Release);
        }
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flush_pays_every_batch_of_that_cpu_and_no_other() {
        let batches = Batches::new();
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
        let batches = Batches::new();
        let id = batches.open(VmId::new(0, 0), VmKind::Plain, &[]).unwrap();
        batches.pay(0, |_| panic!("nothing was owed"));
        assert!(batches.settle(id).is_ok());
        assert_eq!(batches.settle(id), Err(Status::NotFound));
        let again = batches.open(VmId::new(0, 0), VmKind::Plain, &[]).unwrap();
        assert_ne!(id, again, "a slot's next batch has another generation");
    }

    #[test]
    fn a_full_table_merges_and_keeps_all_debts() {
        let batches = Batches::new();
        for n in 0..MAX_BATCHES as u16 {
            batches.open(VmId::new(n, 0), VmKind::Sev, &[0b01]).unwrap();
        }
        let merged = batches.open(VmId::new(0, 1), VmKind::Sev, &[0b10]).unwrap();
        assert_eq!(batches.owed(merged).unwrap()[0], 0b11);
        assert_eq!(batches.open(VmId::new(0, 2), VmKind::Plain, &[]), Err(Status::Busy));
    }
}
