//! What notifier did for each VM, for its statistics. It is lost when notifier is started again.

use caisson_proto::abi::MAX_VMS;
use caisson_proto::addr::VmId;
use caisson_proto::notifier::VmNotices;

/// Nothing was done.
const NONE: VmNotices = VmNotices { notices: 0, spurious: 0, asked: 0, done: 0, owed_nothing: 0 };

/// The counts by VM slot.
#[derive(Debug)]
pub(crate) struct Counts([(VmId, VmNotices); MAX_VMS]);

impl Counts {
    pub(crate) const fn new() -> Self {
        Self([(VmId::new(0, 0), NONE); MAX_VMS])
    }

    pub(crate) fn of(&self, vm: VmId) -> VmNotices {
        self.0.get(vm.index()).filter(|(of, _)| *of == vm).map_or(NONE, |(_, counts)| *counts)
    }

    /// Those of a VM, to count on. A new VM in the slot begins at 0; one that was there before it, whose batches are paid late, counts
    /// no more, and neither does an id that no VM can have.
    pub(crate) fn count(&mut self, vm: VmId, what: impl FnOnce(&mut VmNotices)) {
        let Some((of, counts)) = self.0.get_mut(vm.index()) else { return };
        // Generations of 15 bits come round.
        if vm.generation().wrapping_sub(of.generation()) & 0x7fff > 0x3fff {
            return;
        }
        if *of != vm {
            (*of, *counts) = (vm, NONE);
        }
        what(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_paid_late_takes_nobodys_counts_away() {
        let mut counts = Counts::new();
        let [old, new] = [0x7fff, 0].map(|generation| VmId::new(3, generation));
        let notice = |counts: &mut VmNotices| counts.notices += 1;
        // The initial generation is 0: one before it is as old as can be.
        counts.count(new, notice);
        counts.count(old, notice);
        counts.count(new, notice);
        assert_eq!((counts.of(new).notices, counts.of(old).notices), (2, 0));
        let next = VmId::new(3, 1);
        counts.count(next, notice);
        assert_eq!((counts.of(next).notices, counts.of(new).notices), (1, 0));
    }
}
