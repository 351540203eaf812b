//! What memory, notifier and the switch know of the VM, asked for when somebody reads its statistics.

use caisson_proto::addr::VmId;
use caisson_proto::memory::{FramesOf, Need, Needed, NoticesOf, VmFrames};
use caisson_proto::notifier::VmNotices;
use caisson_proto::stats::VmStat;
use caisson_proto::switch::Report;
use caisson_rt::{call, time};
use caisson_vmm::Vmm;

use super::kernel::OnKernel;

/// Milliseconds for which an answer is new enough: who reads faster than that costs the guest no more.
const NEW_MS: u64 = 50;

/// Whom to ask, and since when.
pub struct Known {
    vm: VmId,
    memory: u16,
    /// The switch's slot, where the VM has a port.
    switch: Option<u16>,
    /// The TSC when they were last asked; 0 for never.
    asked: u64,
}

impl Known {
    /// Nothing was asked yet of memory and the switch, which are in these slots.
    pub fn new(vm: VmId, memory: u16, switch: Option<u16>) -> Self {
        Self { vm, memory, switch, asked: 0 }
    }

    /// What is needed of this VM's balloon; `None` if memory doesn't answer.
    pub fn needed(&self) -> Option<Needed> {
        call(self.memory, &Need { vm: self.vm }).ok()
    }

    /// Asks, unless that was done just now. Who doesn't answer leaves its part as it was.
    pub fn refresh(&mut self, vmm: &mut Vmm<OnKernel>) {
        let now = time::now().0;
        if self.asked != 0 && now.wrapping_sub(self.asked) < time::ticks(NEW_MS) {
            return;
        }
        self.asked = now;
        let vm = self.vm;
        let frames = call(self.memory, &FramesOf { vm }).map(|frames| {
            let VmFrames { mapped, kernel, quarantined, promised, reclaimed, flush_requests, flushes } = frames;
            [
                (VmStat::Mapped, mapped),
                (VmStat::Kernel, kernel),
                (VmStat::Quarantined, quarantined),
                (VmStat::Promised, promised),
                (VmStat::Reclaimed, reclaimed),
                (VmStat::FlushRequests, flush_requests),
                (VmStat::Flushes, flushes),
            ]
        });
        let notices = call(self.memory, &NoticesOf { vm }).map(|notices| {
            let VmNotices { notices, spurious, asked, done, owed_nothing } = notices;
            [
                (VmStat::Notices, notices),
                (VmStat::Spurious, spurious),
                (VmStat::WriteBacks, asked),
                (VmStat::WriteBacksDone, done),
                (VmStat::OwedNothing, owed_nothing),
            ]
        });
        let report = self.switch.and_then(|slot| call(slot, &Report {}).ok());
        let missed = report.map(|report| (VmStat::NetMissed, report.missed));
        vmm.refresh(frames.into_iter().flatten().chain(notices.into_iter().flatten()).chain(missed));
    }
}
