//! What memory says of one VM to the service that handles it, for its statistics.

use caisson_proto::abi::{MAX_VMS, Status};
use caisson_proto::addr::{ServiceId, VmId};
use caisson_proto::kernel::BatchInfo;
use caisson_proto::memory::VmFrames;

use crate::{Kernel, Memory, own};

/// What was taken from a VM while it lived.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    vm: VmId,
    reclaimed: u64,
    requests: u64,
    flushes: u64,
}

/// The same by VM slot. It is lost when memory is started again: these counts begin at 0 then.
#[derive(Debug)]
pub(crate) struct Counts([Option<Taken>; MAX_VMS]);

impl Counts {
    pub(crate) const fn new() -> Self {
        Self([None; MAX_VMS])
    }

    fn of(&self, vm: VmId) -> Taken {
        self.0.get(vm.index()).copied().flatten().filter(|taken| taken.vm == vm).unwrap_or_default()
    }

    /// The kernel was asked to take pages from a VM, and did.
    pub(crate) fn took(&mut self, vm: VmId, pages: u64, requests: u64, flushes: u64) {
        let before = self.of(vm);
        if let Some(place) = self.0.get_mut(vm.index()) {
            let (reclaimed, requests) = (before.reclaimed + pages, before.requests + requests);
            *place = Some(Taken { vm, reclaimed, requests, flushes: before.flushes + flushes });
        }
    }
}

impl Memory {
    /// How the frames of a VM of the sender's stand.
    pub(crate) fn vm_frames(&self, sender: ServiceId, vm: VmId, kernel: &mut impl Kernel) -> Result<VmFrames, Status> {
        let report = own(vm, sender, kernel)?;
        let has = report.pages.saturating_add(report.kernel_frames);
        let Taken { reclaimed, requests, flushes, .. } = self.counts.of(vm);
        Ok(VmFrames {
            mapped: report.pages,
            kernel: report.kernel_frames,
            quarantined: quarantined(vm, kernel),
            promised: self.promises.owed(vm, has),
            reclaimed,
            flush_requests: requests,
            flushes,
        })
    }
}

/// Frames of a VM's that wait in batches. There are few batches: the kernel's table has 64.
fn quarantined(vm: VmId, kernel: &mut impl Kernel) -> u64 {
    let (mut slot, mut frames) = (0, 0u64);
    while let Ok(batch) = kernel.ask(&BatchInfo { slot }) {
        if batch.vm == vm {
            frames = frames.saturating_add(batch.frames);
        }
        // A table that doesn't advance would never end.
        if batch.next <= slot {
            break;
        }
        slot = batch.next;
    }
    frames
}
