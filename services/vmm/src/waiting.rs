//! vCPUs that wait for a page: memory has none now, and has asked other guests' balloons for some.
//!
//! Such a vCPU is parked, so that its guest's others and everything else go on, and faults again a moment later. If nothing has
//! come after [`PATIENCE_MS`], its VM ends as if nobody could give any.

use caisson_proto::abi::Status;
use caisson_proto::vcpu::{Action, Resume};

use crate::platform::Platform;
use crate::vcpu::Life;
use crate::vmm::Vmm;

/// How long a vCPU waits for one page that nobody has, in milliseconds.
pub const PATIENCE_MS: u64 = 10_000;
/// How long for one that is there once it is written back. That needs no guest's help, and always comes.
pub const WRITE_BACK_MS: u64 = 60_000;
/// How often it asks meanwhile.
pub const AGAIN_MS: u64 = 20;
/// Who hasn't asked for so long begins to wait anew: its guest did something else in between.
const OTHERWISE_MS: u64 = 1000;

/// A vCPU's wait.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// What memory answers. Each kind of answer has its own patience, so a wait begins anew when it changes.
    answer: Status,
    /// When it began.
    since: u64,
    /// When the vCPU last asked.
    last: u64,
}

impl<P: Platform> Vmm<P> {
    /// A vCPU asked for a page, and this is memory's answer; whether it is to wait and ask again.
    pub(crate) fn waits_for_page(&mut self, at: usize, answer: Status) -> bool {
        let patience = match answer {
            Status::Exhausted => PATIENCE_MS,
            Status::Busy => WRITE_BACK_MS,
            _ => return false,
        };
        let (now, khz) = (self.platform.now(), self.facts.tsc_khz);
        let Some(vcpu) = self.vcpus.get_mut(at) else { return false };
        let otherwise = OTHERWISE_MS.saturating_mul(khz);
        let before = vcpu.waits.filter(|wait| wait.answer == answer && now.saturating_sub(wait.last) < otherwise);
        let since = before.map_or(now, |wait| wait.since);
        vcpu.waits = Some(Wait { answer, since, last: now });
        now.saturating_sub(since) < patience.saturating_mul(khz)
    }

    /// A vCPU got its page: its next wait is another one.
    pub(crate) fn waits_no_more(&mut self, at: usize) {
        if let Some(vcpu) = self.vcpus.get_mut(at) {
            vcpu.waits = None;
        }
    }

    /// A vCPU that is to be parked. If it is because it waits for a page, it asks again soon, and takes what interrupts it at once.
    #[cold]
    pub(crate) fn parks(&mut self, at: usize, resume: &mut Resume) {
        let is_waiting = self.vcpus.get(at).is_some_and(|vcpu| vcpu.life == Life::Running);
        if resume.action != Action::Park || !is_waiting {
            return;
        }
        if resume.inject != 0 {
            resume.action = Action::Run;
            return;
        }
        let soon = self.platform.now().saturating_add(AGAIN_MS.saturating_mul(self.facts.tsc_khz));
        resume.deadline = if resume.deadline == 0 { soon } else { soon.min(resume.deadline) };
    }
}
