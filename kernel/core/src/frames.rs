//! The frame table: what every physical frame is, and the named transitions between states.
//!
//! One 64-bit entry a frame. Invariant: a transition happens only from the state that it names; counts by state
//! always add up to the number of frames. A quarantined frame names its batch; once that is paid the frame is free
//! without being touched again: [`FrameTable::get`] sees it by the batch's generation.

// Under loom too: the table is behind a lock.
use core::sync::atomic::AtomicU64;

use crate::prelude::*;

/// How many states there are.
pub const STATES: usize = FrameState::ALL.len();

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Nobody's. `clean`: known to read zero.
    Free {
        /// Nothing was written to it since it was zeroed.
        clean: bool,
    },
    /// The kernel's own.
    Kernel,
    /// The kernel's, for a VM: tables, VMCBs.
    KernelOf(VmId),
    /// A VM's, shared with its handler.
    Owned(VmId),
    /// A VM's alone.
    Private(VmId),
    /// The secure processor's.
    Firmware,
    /// Taken away, waiting for its batch.
    Quarantined(BatchId),
    /// Not memory, or lost.
    Leaked,
}

impl Frames {
    /// The state's plain name.
    pub const fn state(self) -> FrameState {
        match self {
            Self::Free { .. } => FrameState::Free,
            Self::Kernel | Self::KernelOf(_) => FrameState::Kernel,
            Self::Owned(_) => FrameState::Owned,
            Self::Private(_) => FrameState::Private,
            Self::Firmware => FrameState::Firmware,
            Self::Quarantined(_) => FrameState::Quarantined,
            Self::Leaked => FrameState::Leaked,
        }
    }

    /// The VM that it belongs to.
    pub const fn vm(self) -> Option<VmId> {
        match self {
            Self::KernelOf(vm) | Self::Owned(vm) | Self::Private(vm) => Some(vm),
            _ => None,
        }
    }

    const fn encode(self) -> u64 {
        let (kind, detail) = match self {
            Self::Leaked => (0, 0),
            Self::Free { clean } => (1, clean as u32),
            Self::Kernel => (2, 0),
            Self::KernelOf(vm) => (3, vm.bits()),
            Self::Owned(vm) => (4, vm.bits()),
            Self::Private(vm) => (5, vm.bits()),
            Self::Firmware => (6, 0),
            Self::Quarantined(batch) => (7, batch.0),
        };
        kind | (detail as u64) << 32
    }

    const fn decode(entry: u64) -> Self {
        let detail = (entry >> 32) as u32;
        match entry & 7 {
            1 => Self::Free { clean: detail == 1 },
            2 => Self::Kernel,
            3 => Self::KernelOf(VmId::from_bits(detail)),
            4 => Self::Owned(VmId::from_bits(detail)),
            5 => Self::Private(VmId::from_bits(detail)),
            6 => Self::Firmware,
            7 => Self::Quarantined(BatchId(detail)),
            _ => Self::Leaked,
        }
    }
}

/// The table. Entries that are zero are [`Frames::Leaked`]: what nobody declared to be memory is never handed out.
#[derive(Debug)]
pub struct FrameTable {
    entries: &'static [AtomicU64],
    counts: [AtomicU64; STATES],
}

impl FrameTable {
    /// A table over entries that are all zero.
    pub const fn new(entries: &'static [AtomicU64]) -> Self {
        let mut counts = [const { AtomicU64::new(0) }; STATES];
        counts[FrameState::Leaked as usize] = AtomicU64::new(entries.len() as u64);
        Self { entries, counts }
    }

    /// How many frames it describes.
    pub fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Frames in each state, in the order of [`FrameState::ALL`].
    pub fn counts(&self) -> [u64; STATES] {
        self.counts.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// What a frame is; frames of paid batches are free. `None` outside memory.
    pub fn get(&self, frame: Frame, batches: &Batches) -> Option<Frames> {
        let entry = self.entries.get(usize::try_from(frame.0).ok()?)?;
        match Frames::decode(entry.load(Ordering::Acquire)) {
            Frames::Quarantined(batch) if !batches.is_open(batch) => Some(Frames::Free { clean: false }),
            frames => Some(frames),
        }
    }

    fn set(&self, first: Frame, pages: u64, to: Frames) {
        let start = usize::try_from(first.0).unwrap_or(usize::MAX);
        for entry in self.entries.iter().skip(start).take(pages as usize) {
            entry.store(to.encode(), Ordering::Release);
        }
    }

    fn count(&self, from: FrameState, to: FrameState, pages: u64) {
        if let (Some(from), Some(to)) = (self.counts.get(from as usize), self.counts.get(to as usize)) {
            from.fetch_sub(pages, Ordering::Relaxed);
            to.fetch_add(pages, Ordering::Relaxed);
        }
    }

    /// Boot only: declares a range of RAM to be free or the kernel's.
    pub fn declare(&self, first: Frame, pages: u64, to: Frames) {
        let pages = pages.min(self.size().saturating_sub(first.0));
        for frame in first.0..first.0 + pages {
            let entry = self.entries.get(frame as usize).map(|entry| entry.load(Ordering::Relaxed));
            self.count(Frames::decode(entry.unwrap_or(0)).state(), to.state(), 1);
        }
        self.set(first, pages, to);
    }

    /// Checks that all frames of a range are free. Returns whether all are clean, too.
    ///
    /// # Errors
    /// [`Status::Range`] outside memory, [`Status::State`] if one isn't free.
    pub fn check_free(&self, first: Frame, pages: u64, batches: &Batches) -> Result<bool, Status> {
        let mut clean = true;
        let end = first.0.checked_add(pages).ok_or(Status::Range)?;
        for frame in first.0..end {
            match self.get(Frame(frame), batches).ok_or(Status::Range)? {
                Frames::Free { clean: this } => clean &= this,
                _ => return Err(Status::State),
            }
        }
        Ok(clean)
    }

    /// Free frames that were zeroed just now.
    pub fn zeroed(&self, first: Frame, pages: u64) {
        self.set(first, pages, Frames::Free { clean: true });
    }

    /// Free → Owned. Checked before with [`check_free`](Self::check_free), under the same lock; zeroed since.
    pub fn own(&self, first: Frame, pages: u64, vm: VmId) {
        self.set(first, pages, Frames::Owned(vm));
        self.count(FrameState::Free, FrameState::Owned, pages);
    }

    /// Free → Kernel, for a VM.
    pub fn adopt(&self, first: Frame, pages: u64, vm: VmId) {
        self.set(first, pages, Frames::KernelOf(vm));
        self.count(FrameState::Free, FrameState::Kernel, pages);
    }

    /// Owned, Private or Kernel → Quarantined: unmapped everywhere, waiting for a batch.
    pub fn quarantine(&self, first: Frame, pages: u64, from: FrameState, batch: BatchId) {
        self.set(first, pages, Frames::Quarantined(batch));
        self.count(from, FrameState::Quarantined, pages);
    }

    /// Quarantined → Free: a batch with this many frames was paid.
    pub fn paid(&self, pages: u64) {
        self.count(FrameState::Quarantined, FrameState::Free, pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::sync::Mutex;
    use std::vec::Vec;

    /// A table whose entries are kept so that Miri doesn't miss them.
    fn table(frames: usize) -> FrameTable {
        static KEPT: Mutex<Vec<&[AtomicU64]>> = Mutex::new(Vec::new());
        let entries: &[AtomicU64] = (0..frames).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
        KEPT.lock().unwrap().push(entries);
        FrameTable::new(entries)
    }

    #[test]
    fn undeclared_memory_is_never_free() {
        let table = table(8);
        let batches = Batches::new();
        assert_eq!(table.check_free(Frame(0), 1, &batches), Err(Status::State));
        table.declare(Frame(2), 4, Frames::Free { clean: true });
        assert_eq!(table.check_free(Frame(2), 4, &batches), Ok(true));
        assert_eq!(table.check_free(Frame(2), 5, &batches), Err(Status::State));
        assert_eq!(table.check_free(Frame(7), 2, &batches), Err(Status::State));
        assert_eq!(table.check_free(Frame(8), 1, &batches), Err(Status::Range));
        assert_eq!(table.check_free(Frame(u64::MAX), 2, &batches), Err(Status::Range));
    }

    #[test]
    fn a_frame_is_free_again_exactly_when_its_batch_is_paid() {
        let table = table(8);
        let mut batches = Batches::new();
        let vm = VmId::new(3, 1);
        table.declare(Frame(0), 8, Frames::Free { clean: true });
        table.own(Frame(0), 8, vm);
        let batch = batches.open(vm, caisson_proto::kernel::VmKind::Sev, &[0b1]).unwrap();
        table.quarantine(Frame(0), 8, FrameState::Owned, batch);
        batches.join(batch, 8);
        assert_eq!(table.check_free(Frame(0), 1, &batches), Err(Status::State));
        let mut freed = 0;
        batches.pay(0, |paid| freed += paid.frames);
        table.paid(freed);
        assert_eq!(table.check_free(Frame(0), 8, &batches), Ok(false));
        assert_eq!(table.counts()[FrameState::Free as usize], 8);
        assert_eq!(table.counts().iter().sum::<u64>(), 8);
    }

    #[test]
    fn every_entry_decodes_to_what_was_encoded() {
        let vm = VmId::new(7, 9);
        for frames in [
            Frames::Free { clean: false },
            Frames::Free { clean: true },
            Frames::Kernel,
            Frames::KernelOf(vm),
            Frames::Owned(vm),
            Frames::Private(vm),
            Frames::Firmware,
            Frames::Quarantined(BatchId(77 << 16 | 5)),
            Frames::Leaked,
        ] {
            assert_eq!(Frames::decode(frames.encode()), frames);
        }
    }
}
