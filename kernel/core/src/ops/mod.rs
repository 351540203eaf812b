//! Kernel operations: decode, check the capability, then invoke.
//!
//! Every operation first checks everything and may fail without side effect; then it happens.

mod batches;
mod machine;
mod memory;
mod supervise;
mod vcpus;

use caisson_proto::abi::{Lease, Status};
use caisson_proto::kernel::{Caps, FaultKind, KernelCall};
use caisson_proto::wire::{Reply, Words};

use crate::cpu::UserFrame;
use crate::event::Event;
use crate::here::Here;
use crate::ipc::Next;
use crate::machine::Machine;
use crate::service::Service;

/// What an operation answers.
type Answer = Result<Words, Status>;

/// The caller of an operation and the CPU that it runs on.
struct Call<'a, M: Machine> {
    here: Here<'a, M>,
    slot: usize,
    service: &'a Service,
    lease: Option<Lease>,
}

/// The words of a reply.
fn ok<R: Reply>(reply: R) -> Answer {
    Ok(reply.encode())
}

impl<M: Machine> Here<'_, M> {
    /// A call to the kernel.
    pub(crate) fn kernel_call(&self, frame: &mut UserFrame, slot: usize, service: &Service) -> Next {
        let (Ok(call), Ok(lease)) = (KernelCall::decode(&frame.words), Lease::from_word(frame.rbx)) else {
            return self.blame(slot, FaultKind::Protocol, frame);
        };
        frame.rbx = 0;
        let op = frame.words[0];
        let answer = if service.caps().intersects(needed(&call)) || needed(&call).is_empty() {
            Call { here: *self, slot, service, lease }.invoke(&call)
        } else {
            Err(Status::Denied)
        };
        match answer {
            Ok(words) => {
                frame.rax = Status::Ok as u64;
                frame.words = words;
            }
            Err(status) => {
                if matches!(status, Status::Denied | Status::BadLease | Status::TooWeak) {
                    self.machine.log(Event::Refused(service.id(), op, status));
                }
                frame.rax = status as u64;
                frame.words = [0; 8];
            }
        }
        Next::User
    }
}

/// The capabilities of which the caller needs one.
const fn needed(call: &KernelCall) -> Caps {
    use KernelCall as K;
    match call {
        K::ServiceStatus(_) | K::ServiceRestart(_) | K::ServiceKill(_) | K::PowerOff(_) => Caps::SUPERVISE,
        K::MachineInfo(_) => Caps::empty(),
        K::TimerSet(_) => Caps::TIMER,
        K::FrameRuns(_)
        | K::FrameCount(_)
        | K::VmCreate(_)
        | K::VmDestroy(_)
        | K::VmRelease(_)
        | K::VmInfo(_)
        | K::TablesDonate(_)
        | K::VcpuCreate(_)
        | K::GuestMap(_)
        | K::GuestUnmap(_)
        | K::SequenceRead(_) => Caps::FRAMES,
        K::InvalidateBegin(_) | K::InvalidateEnd(_) | K::WriteBack(_) | K::TicketCheck(_) => Caps::WRITEBACK,
        K::BatchInfo(_) => Caps::WRITEBACK.union(Caps::FRAMES),
        K::VcpuRun(_) | K::VcpuKick(_) | K::VcpuRead(_) | K::CpuidLoad(_) | K::VcpuStop(_) => Caps::VCPUS,
    }
}

impl<M: Machine> Call<'_, M> {
    fn invoke(&self, call: &KernelCall) -> Answer {
        use KernelCall as K;
        match call {
            K::ServiceStatus(request) => self.service_status(request),
            K::ServiceRestart(request) => self.service_restart(request),
            K::ServiceKill(request) => self.service_kill(request),
            K::PowerOff(request) => self.power_off(request),
            K::MachineInfo(_) => self.machine_info(),
            K::TimerSet(request) => self.timer_set(request),
            K::FrameRuns(request) => self.frame_runs(request),
            K::FrameCount(_) => self.frame_count(),
            K::VmCreate(request) => self.vm_create(request),
            K::VmDestroy(request) => self.vm_destroy(request),
            K::VmRelease(request) => self.vm_release(request),
            K::VmInfo(request) => self.vm_info(request),
            K::TablesDonate(request) => self.tables_donate(request),
            K::VcpuCreate(request) => self.vcpu_create(request),
            K::GuestMap(request) => self.guest_map(request),
            K::GuestUnmap(request) => self.guest_unmap(request),
            K::SequenceRead(request) => self.sequence_read(request),
            K::InvalidateBegin(request) => self.invalidate_begin(request),
            K::InvalidateEnd(request) => self.invalidate_end(request),
            K::BatchInfo(request) => self.batch_info(request),
            K::WriteBack(request) => self.write_back(request),
            K::TicketCheck(request) => self.ticket_check(request),
            K::VcpuRun(request) => self.vcpu_run(request),
            K::VcpuKick(request) => self.vcpu_kick(request),
            K::VcpuRead(request) => self.vcpu_read(request),
            K::CpuidLoad(request) => self.cpuid_load(request),
            K::VcpuStop(request) => self.vcpu_stop(request),
        }
    }
}
