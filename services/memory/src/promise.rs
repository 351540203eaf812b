//! What VMs were promised.

use caisson_proto::abi::MAX_VMS;
use caisson_proto::addr::VmId;
use caisson_proto::kernel::{VCPU_FRAMES, VmState};

use crate::{Kernel, vms};

#[derive(Clone, Copy, Debug)]
struct Promise {
    vm: VmId,
    /// Guest pages.
    pages: u64,
    /// Frames in all.
    frames: u64,
    /// Of the pages, those that were given back, or never promised.
    given: u64,
}

/// The promises by VM slot.
#[derive(Debug)]
pub(crate) struct Promises([Option<Promise>; MAX_VMS]);

/// Frames that the kernel needs for a VM of that size at the most: root, vCPUs, a stock of tables, and last-level
/// tables, nested and in the vmm's window, as if every page were a small one.
pub fn overhead(pages: u64, vcpus: u8) -> u64 {
    pages.div_ceil(256) + 96 + u64::from(vcpus) * VCPU_FRAMES
}

impl Promises {
    pub(crate) const fn new() -> Self {
        Self([None; MAX_VMS])
    }

    /// A VM may have so many pages, of which some are promised. The others count as given back.
    pub(crate) fn make(&mut self, vm: VmId, pages: u64, promised: u64, vcpus: u8) {
        if let Some(place) = self.0.get_mut(vm.index()) {
            let (frames, given) = (pages.saturating_add(overhead(pages, vcpus)), pages.saturating_sub(promised));
            *place = Some(Promise { vm, pages, frames, given });
        }
    }

    fn of(&self, vm: VmId) -> Option<Promise> {
        self.0.get(vm.index()).copied().flatten().filter(|promise| promise.vm == vm)
    }

    /// Pages promised to this VM; `None` if that isn't known.
    pub(crate) fn pages(&self, vm: VmId) -> Option<u64> {
        self.of(vm).map(|promise| promise.pages)
    }

    /// Pages that were given back or never promised.
    pub(crate) fn given(&self, vm: VmId) -> u64 {
        self.of(vm).map_or(0, |promise| promise.given)
    }

    /// Another number of pages was given back.
    pub(crate) fn set_given(&mut self, vm: VmId, given: u64) {
        if let Some(promise) = self.0.get_mut(vm.index()).and_then(Option::as_mut).filter(|promise| promise.vm == vm) {
            promise.given = given.min(promise.pages);
        }
    }

    /// More pages are promised, or fewer. `None`, and nothing is changed, if no promise is known or it has no room for that.
    pub(crate) fn shift(&mut self, vm: VmId, pages: u64, more: bool) -> Option<()> {
        let promise = self.of(vm)?;
        let given = if more { promise.given.checked_sub(pages)? } else { promise.given.checked_add(pages)? };
        (given <= promise.pages).then(|| self.set_given(vm, given))
    }

    /// Frames promised to this VM, which has so many, and not its yet; 0 if no promise is known.
    pub(crate) fn owed(&self, vm: VmId, has: u64) -> u64 {
        self.of(vm).map_or(0, |promise| promise.frames.saturating_sub(promise.given).saturating_sub(has))
    }

    /// Frames promised to living VMs and not theirs yet.
    pub(crate) fn outstanding(&self, kernel: &mut impl Kernel) -> u64 {
        vms(kernel)
            .filter(|report| report.state == VmState::Alive)
            .map(|report| {
                let has = report.pages.saturating_add(report.kernel_frames);
                self.owed(report.vm, has)
            })
            .fold(0, u64::saturating_add)
    }
}
