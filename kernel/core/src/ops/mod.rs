//! Kernel operations: decode, check the capability, then invoke.
//!
//! Every operation first checks everything and may fail without side effect; then it happens.

mod batches;
mod firmware;
mod guest;
mod memory;
mod supervise;
mod vcpus;

use crate::prelude::*;

/// What an operation answers.
type Answer<T = Words> = Result<T, Status>;

/// The caller of an operation and the CPU that it runs on.
struct Call<'a, M: Machine> {
    here: Here<'a, M>,
    slot: usize,
    lease: Option<Lease>,
}

impl<'a, M: Machine> Deref for Call<'a, M> {
    type Target = Here<'a, M>;
    fn deref(&self) -> &Here<'a, M> {
        &self.here
    }
}

/// The words of a reply.
fn ok<R: Reply>(reply: R) -> Answer {
    Ok(reply.encode())
}

impl<M: Machine> Here<'_, M> {
    /// A call to the kernel.
    pub(crate) fn kernel_call(self, frame: &mut UserFrame, slot: usize, caller: &Service) -> Next {
        let (Ok(call), Ok(lease)) = (KernelCall::decode(&frame.words), Lease::from_word(frame.rbx)) else {
            return self.blame(slot, FaultKind::Protocol, frame);
        };
        let needed = needed(&call);
        let answer = if needed.is_empty() || caller.caps.get().intersects(needed) {
            Call { here: self, slot, lease }.invoke(&call)
        } else {
            Err(Status::Denied)
        };
        if let Err(status @ (Status::Denied | Status::BadLease | Status::TooWeak)) = answer {
            self.refuse(caller, frame.words[0], status, frame);
        }
        frame.words = answer.unwrap_or_default();
        frame.rbx = 0;
        back(frame, answer.err().unwrap_or(Status::Ok))
    }
}

/// The table of operations: the capabilities of which the caller needs one, and the method that does it.
macro_rules! operations {
    ($($caps:expr => { $($request:ident $method:ident,)+ })+) => {
        const fn needed(call: &KernelCall) -> Caps {
            match call { $($(KernelCall::$request(_))|+ => $caps,)+ }
        }

        impl<M: Machine> Call<'_, M> {
            fn invoke(&self, call: &KernelCall) -> Answer {
                match call { $($(KernelCall::$request(request) => self.$method(request),)+)+ }
            }
        }
    };
}

operations! {
    Caps::empty() => { MachineInfo machine_info, }
    Caps::TIMER => { TimerSet timer_set, }
    Caps::SUPERVISE => {
        ServiceStatus service_status, ServiceRestart service_restart, ServiceKill service_kill, PowerOff power_off,
    }
    Caps::FRAMES => {
        FrameRuns frame_runs, FrameCount frame_count, VmCreate vm_create, VmDestroy vm_destroy, VmRelease vm_release,
        TablesDonate tables_donate, VcpuCreate vcpu_create, GuestMap guest_map,
        GuestUnmap guest_unmap, FrameDonate frame_donate,
        GuestLook guest_look,
    }
    Caps::WRITEBACK => { InvalidateBegin invalidate_begin, InvalidateEnd invalidate_end, WriteBack write_back, }
    Caps::WRITEBACK.union(Caps::FIRMWARE) => { TicketCheck ticket_check, }
    Caps::FRAMES.union(Caps::FIRMWARE) => { GuestConvert guest_convert, }
    Caps::FRAMES.union(Caps::FIRMWARE).union(Caps::SUPERVISE) => { VmInfo vm_info, }
    Caps::FIRMWARE => {
        WriteBackInvalidate write_back_invalidate, AsidBind asid_bind, AsidInfo asid_info, MailboxRing mailbox_ring,
        MailboxTake mailbox_take,
    }
    Caps::SILICON => { SiliconCopy silicon_copy, SiliconCpu silicon_cpu, }
    Caps::WRITEBACK.union(Caps::FRAMES) => { BatchInfo batch_info, }
    Caps::VCPUS => {
        VcpuRun vcpu_run, VcpuKick vcpu_kick, VcpuRead vcpu_read, CpuidLoad cpuid_load,
    }
}
