//! Operations on vCPUs, by the service that handles their VM.
//!
//! Those that touch a vCPU's frames hold the table lock, so that its VM isn't destroyed and released meanwhile.

use core::sync::atomic::Ordering;

use caisson_proto::abi::{MAX_VCPUS, Status};
use caisson_proto::addr::{CpuId, VcpuId};
use caisson_proto::kernel::{CpuidLoad, VcpuKick, VcpuRead, VcpuRun, VcpuStop, VmState};
use caisson_proto::vcpu::{CpuidEntry, Groups};
use caisson_proto::wire::Done;

use super::{Answer, Call, ok};
use crate::context::{Context, Phase, pending};
use crate::machine::Machine;
use crate::vms;

impl<M: Machine> Call<'_, M> {
    /// The context of a vCPU that exists and whose VM the caller handles.
    fn own_vcpu(&self, id: VcpuId) -> Result<Context, Status> {
        let (slot, vm) = vms::find(&self.here.kernel.vms, id.vm)?;
        if vm.handler() != self.service.id() {
            return Err(Status::Denied);
        }
        let index = usize::from(id.index);
        if index >= MAX_VCPUS || vm.vcpus.load(Ordering::Acquire) >> index & 1 == 0 {
            return Err(Status::NotFound);
        }
        if vm.state() != Some(VmState::Alive) {
            return Err(Status::State);
        }
        Ok(Context::vcpu(slot, index))
    }

    /// Whether a vCPU's registers stand still: it is stopped or parked, or the caller is handling its exit.
    fn stands_still(&self, context: Context) -> bool {
        match self.here.context(context).phase() {
            Phase::Idle | Phase::Parked => true,
            Phase::Running => self.here.local.context.get() == Some(context),
            Phase::Ready | Phase::Waiting => false,
        }
    }

    pub(super) fn vcpu_run(&self, request: &VcpuRun) -> Answer {
        let _stays = self.here.tables();
        let context = self.own_vcpu(request.vcpu)?;
        let state = self.here.context(context);
        if state.phase() != Phase::Idle {
            return Err(Status::State);
        }
        self.here.machine.vcpu_load(context, Groups::all())?;
        state.pending.store(0, Ordering::SeqCst);
        state.set_phase(Phase::Ready);
        self.here.wake(context);
        ok(Done {})
    }

    pub(super) fn vcpu_kick(&self, request: &VcpuKick) -> Answer {
        let context = self.own_vcpu(request.vcpu)?;
        self.here.kick(context, pending::KICK);
        ok(Done {})
    }

    pub(super) fn vcpu_read(&self, request: &VcpuRead) -> Answer {
        let _stays = self.here.tables();
        let context = self.own_vcpu(request.vcpu)?;
        if !self.stands_still(context) {
            return Err(Status::Busy);
        }
        self.here.machine.vcpu_save(context, request.groups);
        ok(Done {})
    }

    pub(super) fn cpuid_load(&self, request: &CpuidLoad) -> Answer {
        let _stays = self.here.tables();
        let context = self.own_vcpu(request.vcpu)?;
        let lease = self.lease.ok_or(Status::BadLease)?;
        if lease.pages != 1 || usize::from(request.count) > CpuidEntry::MAX {
            return Err(Status::Range);
        }
        if !self.stands_still(context) {
            return Err(Status::Busy);
        }
        self.here.machine.vcpu_cpuid(context, lease, request.count)?;
        ok(Done {})
    }

    pub(super) fn vcpu_stop(&self, request: &VcpuStop) -> Answer {
        let context = self.own_vcpu(request.vcpu)?;
        let state = self.here.context(context);
        if self.here.local.context.get() == Some(context) {
            return Err(Status::State);
        }
        self.here.kick(context, pending::STOP);
        while state.in_guest() {
            self.here.machine.interrupt_cpu(CpuId(state.home.load(Ordering::SeqCst)));
            self.here.machine.relax();
        }
        ok(Done {})
    }
}
