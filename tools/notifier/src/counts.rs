//! Sequence, count and hull as they are under a lock, for the ways that have one: Caisson's are the kernel's own.

use std::ops::Range;

/// What is changing.
#[derive(Debug, Default)]
pub struct Counts {
    sequence: u64,
    in_progress: u32,
    hull: Option<Range<u64>>,
}

impl Counts {
    /// A range is about to change.
    pub fn begin(&mut self, range: &Range<u64>) {
        self.in_progress += 1;
        self.join(range);
    }

    /// More of it.
    pub fn join(&mut self, range: &Range<u64>) {
        let hull = self.hull.get_or_insert_with(|| range.clone());
        *hull = hull.start.min(range.start)..hull.end.max(range.end);
    }

    /// It is over.
    pub fn end(&mut self) {
        self.sequence += 1;
        self.in_progress -= 1;
        if self.in_progress == 0 {
            self.hull = None;
        }
    }

    /// What a fault remembers.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether it may be written for this frame what was decided then.
    pub fn may_commit(&self, sequence: u64, gfn: u64) -> bool {
        self.sequence == sequence && !self.hull.as_ref().is_some_and(|hull| hull.contains(&gfn))
    }
}
