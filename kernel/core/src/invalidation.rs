//! Invalidation of a VM's translations: sequence, in-progress count and hull.
//!
//! begin: the count grows and the range joins the hull. end: the sequence moves *before* the count shrinks; the
//! hull stays until the count is 0. A commit that took its snapshot before is refused if the sequence moved, or
//! if a change is in progress and the frame lies in the hull. All under the table lock, where entries are written.

use crate::prelude::*;

/// The state of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    sequence: u64,
    in_progress: u32,
    /// The lowest frame, and one past the highest.
    hull: (u64, u64),
}

/// A hull without a frame.
const NOTHING: (u64, u64) = (u64::MAX, 0);

impl Invalidation {
    /// A VM in which nothing changes.
    pub const fn new() -> Self {
        Self { sequence: 0, in_progress: 0, hull: NOTHING }
    }

    /// The snapshot that a fault takes before it decides.
    pub const fn sequence(&self) -> Sequence {
        Sequence(self.sequence)
    }

    /// A range is about to change.
    ///
    /// # Errors
    /// [`Status::Range`] for an empty range, [`Status::Exhausted`] after 2³² − 1 begins without an end.
    pub fn begin(&mut self, start: Gfn, end: Gfn) -> Outcome {
        ensure(start < end, Status::Range)?;
        self.in_progress = self.in_progress.checked_add(1).ok_or(Status::Exhausted)?;
        self.hull = (self.hull.0.min(start.0), self.hull.1.max(end.0));
        Ok(())
    }

    /// The change is over.
    ///
    /// # Errors
    /// [`Status::State`] if none is in progress.
    pub fn end(&mut self) -> Outcome {
        let left = self.in_progress.checked_sub(1).ok_or(Status::State)?;
        self.sequence += 1;
        self.in_progress = left;
        if left == 0 {
            self.hull = NOTHING;
        }
        Ok(())
    }

    /// Whether a mapping decided at `snapshot` may be written for these pages.
    ///
    /// # Errors
    /// [`Status::Stale`] if not: fault again.
    pub fn commit(&self, snapshot: Sequence, gfn: Gfn, pages: u64) -> Outcome {
        let (low, high) = self.hull;
        let in_hull = gfn.0 < high && low < gfn.0 + pages;
        ensure(snapshot.0 == self.sequence && !in_hull, Status::Stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_outside_the_hull_go_on_and_inside_are_refused() {
        let mut vm = Invalidation::new();
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
        let mut vm = Invalidation::new();
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
