//! What memory does about the secure processor: gives it its frames, has the platform initialised, and has a dead VM's
//! guest forgotten before the VM's last frames are taken back.

use std::collections::BTreeMap;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, VmId};
use caisson_proto::firmware::{
    Cause, Decommission, Init, JobId, JobResult, JobState, PlatformState, PlatformStatus, SnpInit,
};
use caisson_proto::kernel::{FrameCount, FrameDonate, VmInfo, VmKind};

use crate::service::Sys;
use crate::silicon::DONATION;

/// How often initialisation is asked for.
const TRIES: u32 = 50;

/// How far somebody is whose end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Asked(JobId),
    Done,
}

/// What memory remembers of it.
#[derive(Debug, Default)]
pub struct Platform {
    init: Option<JobId>,
    initialised: bool,
    tries: u32,
    ends: BTreeMap<u32, End>,
}

impl Platform {
    /// Gives the processor its frames, unless a predecessor did; asks for its initialisation.
    pub fn begin(sys: &Sys<'_>) -> Self {
        let mut platform = Self { initialised: !sys.world.config.encrypted, ..Self::default() };
        if !platform.initialised {
            let donated = sys.ask(&FrameCount {}).is_ok_and(|counts| counts.firmware > 0);
            if !donated && !sys.world.config.snp {
                let _ = sys.ask(&FrameDonate { frame: Self::frames(sys), pages: DONATION });
            }
            platform.look(sys);
        }
        platform
    }

    /// The last frames that are aligned as the processor wants it.
    fn frames(sys: &Sys<'_>) -> Frame {
        Frame((sys.world.config.frames - DONATION) / DONATION * DONATION)
    }

    /// Goes on with the initialisation.
    pub fn look(&mut self, sys: &Sys<'_>) {
        let firmware = sys.world.manifest.firmware;
        if self.initialised || sys.stopped() {
            return;
        }
        if let Some(job) = self.init
            && sys.call(firmware, &JobResult { job }).is_ok_and(|report| report.state != JobState::Ended)
        {
            return;
        }
        self.init = None;
        self.tries += 1;
        if self.tries > TRIES {
            // A processor that won't: encrypted VMs aren't launched then.
            self.initialised = true;
            return;
        }
        match sys.call(firmware, &PlatformStatus {}) {
            // Before a guest has the platform initialised without it.
            Ok(platform)
                if sys.world.config.snp
                    && !platform.snp
                    && matches!(platform.sev, PlatformState::Uninit | PlatformState::Unknown) =>
            {
                self.init = sys.call(firmware, &SnpInit { rmp: true }).ok().map(|queued| queued.job);
            }
            Ok(platform) if platform.sev == PlatformState::Uninit => {
                let pages = if sys.world.config.snp { 0 } else { DONATION };
                let init = Init { frame: Self::frames(sys), pages };
                self.init = sys.call(firmware, &init).ok().map(|queued| queued.job);
            }
            Ok(platform) => self.initialised = platform.sev != PlatformState::Unknown,
            Err(_) => {}
        }
    }

    /// Has the guest of a VM forgotten.
    ///
    /// # Errors
    /// [`Status::Busy`] while that isn't done.
    pub fn end(&mut self, sys: &Sys<'_>, vm: u64) -> Result<(), Status> {
        let firmware = sys.world.manifest.firmware;
        let vm = VmId::from_bits(vm as u32);
        let plain = |report: caisson_proto::kernel::VmReport| report.vm != vm || report.kind == VmKind::Plain;
        if sys.ask(&VmInfo { slot: vm.index() as u16 }).is_ok_and(plain) {
            return Ok(());
        }
        let end = match self.ends.get(&vm.bits()) {
            Some(End::Done) => return Ok(()),
            Some(End::Asked(job)) => match sys.call(firmware, &JobResult { job: *job }) {
                // What the kernel refused is asked again: a vCPU was still running.
                Ok(report) if report.state == JobState::Ended => {
                    (report.status == Status::Ok || report.cause == Cause::Processor).then_some(End::Done)
                }
                Ok(_) => return Err(Status::Busy),
                // It died, or forgot.
                Err(_) => None,
            },
            None => match sys.call(firmware, &Decommission { vm }) {
                Ok(queued) => Some(End::Asked(queued.job)),
                Err(Status::Unsupported) => Some(End::Done),
                Err(_) => None,
            },
        };
        match end {
            Some(end) => drop(self.ends.insert(vm.bits(), end)),
            None => drop(self.ends.remove(&vm.bits())),
        }
        if end == Some(End::Done) { Ok(()) } else { Err(Status::Busy) }
    }
}
