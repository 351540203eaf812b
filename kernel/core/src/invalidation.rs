//! Invalidation of a VM's translations: sequence, in-progress count and hull.
//!
//! begin: the count grows and the range joins the hull. end: the sequence moves *before* the count shrinks; the
//! hull stays until the count is 0. A commit that took its snapshot before is refused if the sequence moved, or
//! if a change is in progress and the frame lies in the hull. Begins and commits hold the table lock, under which
//! entries are written; an end takes no lock and waits for nobody.

use crate::prelude::*;

initial! {
    /// The state of one VM.
    pub struct Invalidation {
        sequence: AtomicU64 = AtomicU64::new(0),
        in_progress: AtomicU64 = AtomicU64::new(0),
        /// While a change is in progress: the lowest frame, and one past the highest.
        low: AtomicU64 = AtomicU64::new(0),
        high: AtomicU64 = AtomicU64::new(0),
    }
}

impl Invalidation {
    /// The snapshot that a fault takes before it decides.
    pub fn sequence(&self) -> Sequence {
        Sequence(self.sequence.load(Ordering::Acquire))
    }

    /// Another VM begins: nothing is in progress. The sequence goes on.
    pub fn forget(&self) {
        self.in_progress.store(0, Ordering::Release);
    }

    fn changes(&self) -> bool {
        self.in_progress.load(Ordering::Acquire) != 0
    }

    /// A range is about to change. Under the table lock.
    ///
    /// # Errors
    /// [`Status::Range`] for an empty range.
    pub fn begin(&self, start: Gfn, end: Gfn) -> Outcome {
        ensure(start < end, Status::Range)?;
        // The last end may come meanwhile: the hull is larger than it need be then.
        let joins = |hull: &AtomicU64| self.changes().then(|| hull.load(Ordering::Relaxed));
        self.low.store(joins(&self.low).unwrap_or(u64::MAX).min(start.0), Ordering::Relaxed);
        self.high.store(joins(&self.high).unwrap_or(0).max(end.0), Ordering::Relaxed);
        self.in_progress.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The change is over. In this order: who finds no change in progress finds the sequence moved.
    ///
    /// # Errors
    /// [`Status::State`] if none is in progress.
    pub fn end(&self) -> Outcome {
        // If another change begins or ends right then, it moves once more.
        let less = |count: u64| count.checked_sub(1).inspect(|_| _ = self.sequence.fetch_add(1, Ordering::AcqRel));
        self.in_progress.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).map(drop).or(Err(Status::State))
    }

    /// Whether a mapping decided at `snapshot` may be written for these pages. Under the table lock.
    ///
    /// # Errors
    /// [`Status::Stale`] if not: fault again.
    pub fn commit(&self, snapshot: Sequence, gfn: Gfn, pages: u64) -> Outcome {
        // Before the sequence is looked at, as `end` has them in the other order.
        let changes = self.changes();
        let (low, high) = (self.low.load(Ordering::Relaxed), self.high.load(Ordering::Relaxed));
        let in_hull = changes && gfn.0 < high && low < gfn.0 + pages;
        ensure(snapshot == self.sequence() && !in_hull, Status::Stale)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn commits_outside_the_hull_go_on_and_inside_are_refused() {
        let vm = Invalidation::new();
        let before = vm.sequence();
        vm.begin(Gfn(8), Gfn(16)).unwrap();
        assert_eq!(vm.commit(before, Gfn(0), 8), Ok(()));
        assert_eq!(vm.commit(before, Gfn(16), 1), Ok(()));
        assert_eq!(vm.commit(before, Gfn(0), 9), Err(Status::Stale));
        assert_eq!(vm.commit(before, Gfn(15), 1), Err(Status::Stale));
        vm.end().unwrap();
        assert_eq!(vm.commit(before, Gfn(0), 1), Err(Status::Stale), "the snapshot is old now");
        assert_eq!(vm.commit(vm.sequence(), Gfn(8), 1), Ok(()));
    }

    #[test]
    fn the_hull_stays_until_the_last_end() {
        let vm = Invalidation::new();
        vm.begin(Gfn(0), Gfn(1)).unwrap();
        vm.begin(Gfn(100), Gfn(101)).unwrap();
        vm.end().unwrap();
        assert_eq!(vm.commit(vm.sequence(), Gfn(50), 1), Err(Status::Stale));
        vm.end().unwrap();
        assert_eq!(vm.commit(vm.sequence(), Gfn(50), 1), Ok(()));
        assert_eq!(vm.end(), Err(Status::State));
        assert_eq!(vm.begin(Gfn(5), Gfn(5)), Err(Status::Range));
    }
}
