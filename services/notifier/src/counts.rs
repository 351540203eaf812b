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

    /// Those of a VM, to count on. A new VM in the slot begins at 0; an id that no VM can have counts for nobody.
    pub(crate) fn count(&mut self, vm: VmId, what: impl FnOnce(&mut VmNotices)) {
        let Some((of, counts)) = self.0.get_mut(vm.index()) else { return };
        if *of != vm {
            (*of, *counts) = (vm, NONE);
        }
        what(counts);
    }
}
