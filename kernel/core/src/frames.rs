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
pub struct Frames {
    /// Its state.
    pub state: FrameState,
    /// 1 for a clean free one: it is known to read zero. The batch of one in quarantine. The id of the VM that another
    /// belongs to, with [`OF_VM`](Self::OF_VM).
    detail: u32,
}

impl Frames {
    /// In `detail`: there is a VM. Ids of VMs have 31 bits.
    const OF_VM: u32 = 1 << 31;

    /// Nobody's, perhaps clean.
    pub const fn free(clean: bool) -> Self {
        Self { state: FrameState::Free, detail: clean as u32 }
    }

    /// Of nobody in particular.
    pub const fn plain(state: FrameState) -> Self {
        Self { state, detail: 0 }
    }

    /// A VM's: its own, or the kernel's for it.
    pub const fn of(state: FrameState, vm: VmId) -> Self {
        Self { state, detail: vm.bits() | Self::OF_VM }
    }

    /// Waiting for this batch.
    pub const fn quarantined(batch: BatchId) -> Self {
        Self { state: FrameState::Quarantined, detail: batch.0 }
    }

    /// The VM that it belongs to.
    pub fn vm(self) -> Option<VmId> {
        let is = self.state != FrameState::Quarantined && self.detail & Self::OF_VM != 0;
        is.then_some(VmId::from_bits(self.detail & !Self::OF_VM))
    }

    /// Zero stands for [`FrameState::Leaked`].
    const fn encode(self) -> u64 {
        (self.state as u64 ^ FrameState::Leaked as u64) | (self.detail as u64) << 32
    }

    fn decode(entry: u64) -> Self {
        let state = FrameState::ALL.get((entry & 7 ^ FrameState::Leaked as u64) as usize);
        Self { state: *state.unwrap_or(&FrameState::Leaked), detail: (entry >> 32) as u32 }
    }
}

/// The table. Entries that are zero are [`FrameState::Leaked`]: what nobody declared to be memory is never handed out.
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
        let frame = Frames::decode(entry.load(Ordering::Acquire));
        let paid = frame.state == FrameState::Quarantined && batches.find(BatchId(frame.detail)).is_none();
        Some(if paid { Frames::free(false) } else { frame })
    }

    fn count(&self, from: FrameState, to: FrameState, pages: u64) {
        self.counts[from as usize % STATES].fetch_sub(pages, Ordering::Relaxed);
        self.counts[to as usize % STATES].fetch_add(pages, Ordering::Relaxed);
    }

    /// Makes frames something else, which were checked before, under the same lock. The transitions: Free → Owned, once
    /// zeroed; Free → Kernel for a VM; Free → Firmware, for good; a VM's Kernel → Firmware, for its context, and that → Free once
    /// the processor gave it back; what the RMP refuses → Leaked; Owned → Private, once it is mapped nowhere in the host; Owned,
    /// Private or a VM's Kernel → Quarantined, once it is mapped nowhere at all.
    pub fn turn(&self, first: Frame, pages: u64, from: FrameState, to: Frames) {
        let start = usize::try_from(first.0).unwrap_or(usize::MAX);
        for entry in self.entries.iter().skip(start).take(pages as usize) {
            entry.store(to.encode(), Ordering::Release);
        }
        self.count(from, to.state, pages);
    }

    /// Boot only: declares a range of RAM to be free or the kernel's.
    pub fn declare(&self, first: Frame, pages: u64, to: Frames) {
        for (frame, entry) in (0..).zip(self.entries).skip(first.0 as usize).take(pages as usize) {
            self.turn(Frame(frame), 1, Frames::decode(entry.load(Ordering::Relaxed)).state, to);
        }
    }

    /// Checks that all frames of a range are free. Returns whether all are clean, too.
    ///
    /// # Errors
    /// [`Status::Range`] outside memory, [`Status::State`] if one isn't free.
    pub fn check_free(&self, first: Frame, pages: u64, batches: &Batches) -> Result<bool, Status> {
        let mut clean = true;
        let end = first.0.checked_add(pages).ok_or(Status::Range)?;
        for frame in first.0..end {
            let frame = self.get(Frame(frame), batches).ok_or(Status::Range)?;
            ensure(frame.state == FrameState::Free, Status::State)?;
            clean &= frame == Frames::free(true);
        }
        Ok(clean)
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
        table.declare(Frame(2), 4, Frames::free(true));
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
        table.declare(Frame(0), 8, Frames::free(true));
        table.turn(Frame(0), 8, FrameState::Free, Frames::of(FrameState::Owned, vm));
        let batch = batches
            .open(vm, caisson_proto::kernel::VmKind::Sev, &CpuSet::of([CpuId(0)].into_iter()), Payable::WriteBack)
            .unwrap();
        table.turn(Frame(0), 8, FrameState::Owned, Frames::quarantined(batch));
        batches.join(batch, 8);
        assert_eq!(table.check_free(Frame(0), 1, &batches), Err(Status::State));
        table.paid(batches.pay(CpuId(0), false).unwrap().frames);
        assert_eq!(table.check_free(Frame(0), 8, &batches), Ok(false));
        assert_eq!(table.counts()[FrameState::Free as usize], 8);
        assert_eq!(table.counts().iter().sum::<u64>(), 8);
    }

    #[test]
    fn every_entry_decodes_to_what_was_encoded() {
        let vm = VmId::new(7, 9);
        for frames in [
            Frames::free(false),
            Frames::free(true),
            Frames::plain(FrameState::Kernel),
            Frames::of(FrameState::Kernel, vm),
            Frames::of(FrameState::Owned, vm),
            Frames::of(FrameState::Private, vm),
            Frames::plain(FrameState::Firmware),
            Frames::quarantined(BatchId(0xffff << 16 | 5)),
            Frames::plain(FrameState::Leaked),
        ] {
            assert_eq!(Frames::decode(frames.encode()), frames);
        }
    }
}
