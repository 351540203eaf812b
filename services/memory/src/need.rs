//! Whether there is enough memory for guests that may have more than they were promised, and whom to tell if there isn't.
//!
//! A guest that asks and finds nothing, or finds little left, begins a shortage: from then on the vmms are rung in rounds, and
//! ask how much is [`Needed`]; those with a balloon raise it or lower it again. It ends when there has been plenty for a while.

use caisson_proto::abi::Status;
use caisson_proto::addr::{ServiceId, VmId};
use caisson_proto::kernel::{VmKind, VmState};
use caisson_proto::memory::Needed;

use crate::{Kernel, Memory, own, unpromised, vms, vms_from};

/// With fewer frames that nobody was promised, some are lacking: 32 MiB. Fewer on the host, whose machines are small.
pub const LOW: u64 = if cfg!(target_os = "none") { 8192 } else { 1024 };
/// With more than these there is plenty.
pub const HIGH: u64 = 2 * LOW;
/// What vmms are asked for goes a little beyond the low mark, so that it isn't reached again at once.
const GOAL: u64 = LOW + LOW / 2;
/// So many rounds with plenty end a shortage: 20 s.
pub const ROUNDS: u32 = 100;

/// Where a shortage stands.
#[derive(Debug)]
pub(crate) struct Shortage {
    /// Rounds that it lasts at the least; 0: there is none.
    left: u32,
}

impl Shortage {
    pub(crate) const fn new() -> Self {
        Self { left: 0 }
    }
}

impl Memory {
    /// A VM asked for more than it was promised, and this was left for that; or a predecessor may have told vmms of a shortage.
    pub(crate) fn short(&mut self, kernel: &mut impl Kernel) {
        if self.shortage.left == 0 {
            self.shortage.left = ROUNDS;
            self.tell(kernel);
        }
        self.shortage.left = ROUNDS;
    }

    /// A VM that has so many pages asks for some. If it may get what nobody was promised and little of that is left, it is short.
    pub(crate) fn notice(&mut self, vm: VmId, has: u64, kernel: &mut impl Kernel) {
        let (pages, given) = (self.promises.pages(vm).unwrap_or(0), self.promises.given(vm));
        let is_beyond = given > 0 && pages.saturating_sub(given) <= has;
        if is_beyond && unpromised(&self.promises, kernel).is_ok_and(|left| left < LOW) {
            self.short(kernel);
        }
    }

    /// A VM got nothing. If it may have more than it was promised, or it isn't known what that was, it is short.
    pub(crate) fn refused(&mut self, vm: VmId, kernel: &mut impl Kernel) {
        if self.promises.given(vm) > 0 || self.promises.pages(vm).is_none() {
            self.short(kernel);
        }
    }

    /// What dead VMs had is free. Vmms whose balloons hold something lower them in a shortage's rounds only.
    pub(crate) fn freed(&mut self, kernel: &mut impl Kernel) {
        let holds = |vm| self.promises.given(vm) > 0 || self.promises.pages(vm).is_none();
        if vms(kernel).any(|report| report.state == VmState::Alive && holds(report.vm)) {
            self.short(kernel);
        }
    }

    /// The next round of a shortage, if there is one and its time has come: the timer rings for dying VMs, too.
    pub(crate) fn round(&mut self, kernel: &mut impl Kernel) {
        if self.shortage.left == 0 || !kernel.round_is_due() {
            return;
        }
        let unpromised = unpromised(&self.promises, kernel).unwrap_or(0);
        self.shortage.left = if unpromised > HIGH { self.shortage.left - 1 } else { ROUNDS };
        if !(LOW..=HIGH).contains(&unpromised) {
            self.tell(kernel);
        } else {
            kernel.next_round();
        }
    }

    /// Rings every VM that could have a balloon.
    fn tell(&self, kernel: &mut impl Kernel) {
        let mut slot = 0;
        loop {
            let next = vms_from(slot, kernel).next();
            let Some(report) = next else { break };
            slot = report.next;
            if report.state == VmState::Alive && report.kind == VmKind::Plain {
                kernel.tell_need(report.handler);
            }
        }
        kernel.next_round();
    }

    /// What a vmm is told then.
    pub(crate) fn needed(&self, sender: ServiceId, vm: VmId, kernel: &mut impl Kernel) -> Result<Needed, Status> {
        own(vm, sender, kernel)?;
        let unpromised = unpromised(&self.promises, kernel)?;
        let vms = vms(kernel).filter(|vm| vm.state == VmState::Alive && vm.kind == VmKind::Plain).count() as u64;
        let is_short = self.shortage.left > 0 && unpromised < LOW;
        let lacking = if is_short { GOAL - unpromised } else { 0 };
        Ok(Needed { lacking, spare: unpromised.saturating_sub(HIGH), vms })
    }
}
