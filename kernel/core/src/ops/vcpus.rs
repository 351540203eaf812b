//! Operations on vCPUs, by the service that handles their VM.
//!
//! Those that touch a vCPU's frames hold the table lock, so that its VM isn't destroyed and released meanwhile.

use super::{Answer, Call, ok};
use crate::prelude::*;

impl<M: Machine> Call<'_, M> {
    /// The context of a vCPU that exists and whose VM the caller handles.
    fn own_vcpu(&self, id: VcpuId) -> Result<Context, Status> {
        let (slot, vm) = vms::find(&self.vms, id.vm)?;
        ensure(vm.handler.get() == self.service(self.slot).id.get(), Status::Denied)?;
        let index = usize::from(id.index);
        ensure(index < MAX_VCPUS && vm.vcpus.load(Ordering::Acquire) >> index & 1 == 1, Status::NotFound)?;
        ensure(vm.state() == Some(VmState::Alive), Status::State)?;
        Ok(Context::vcpu(slot, index))
    }

    /// Such a vCPU if its registers stand still: it is stopped or parked, or the caller is handling its exit.
    fn still_vcpu(&self, id: VcpuId) -> Result<Context, Status> {
        let context = self.own_vcpu(id)?;
        match self.context(context).phase.get() {
            Phase::Idle | Phase::Parked => Ok(context),
            Phase::Running if self.local.context.get() == Some(context) => Ok(context),
            Phase::Running | Phase::Ready | Phase::Waiting => Err(Status::Busy),
        }
    }

    pub(super) fn vcpu_run(&self, request: &VcpuRun) -> Answer {
        let mut tables = self.tables();
        let context = self.own_vcpu(request.vcpu)?;
        let state = self.context(context);
        let plain = tables.books.get(request.vcpu.vm.index()).is_some_and(|books| books.kind == VmKind::Plain);
        let active = plain || tables.asids.of(request.vcpu.vm).is_some_and(|(_, asid)| asid.state == AsidState::Active);
        ensure(state.phase.get() == Phase::Idle && active, Status::State)?;
        ensure(plain || !tables.is_ending(request.vcpu.vm), Status::Busy)?;
        self.machine.vcpu_load(context, Groups::all())?;
        state.pending.store(0, Ordering::SeqCst);
        state.phase.swap(Phase::Ready);
        self.wake(context);
        ok(Done {})
    }

    pub(super) fn vcpu_kick(&self, request: &VcpuKick) -> Answer {
        let context = self.own_vcpu(request.vcpu)?;
        self.kick(context, pending::KICK);
        ok(Done {})
    }

    pub(super) fn vcpu_read(&self, request: &VcpuRead) -> Answer {
        let _stays = self.tables();
        let context = self.still_vcpu(request.vcpu)?;
        // What may still be in a CPU's registers can be had there alone.
        let home = self.context(context).home.load(Ordering::SeqCst);
        ensure(!request.groups.intersects(RESIDENT) || home == self.local.cpu.0, Status::Busy)?;
        self.machine.vcpu_save(context, request.groups);
        ok(Done {})
    }

    pub(super) fn cpuid_load(&self, request: &CpuidLoad) -> Answer {
        let tables = self.tables();
        self.still_vcpu(request.vcpu)?;
        let lease = self.lease.ok_or(Status::BadLease)?;
        ensure(lease.pages == 1, Status::Range)?;
        let VcpuId { vm, index } = request.vcpu;
        let first = tables.books[vm.index() % MAX_VMS].vcpus[usize::from(index) % MAX_VCPUS].ok_or(Status::NotFound)?;
        // The last of its frames.
        let table = Frame(first.0 + VCPU_FRAMES - 1).spa();
        self.machine.copy(lease.page.0 * PAGE_SIZE, table, PAGE_SIZE, false)?;
        ok(Done {})
    }
}
