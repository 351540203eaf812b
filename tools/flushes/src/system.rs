//! The kernel and who calls it: services are entered by nobody here, each asks in its turn.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use caisson_core::context::Context;
use caisson_core::cpu::{Local, UserFrame};
use caisson_core::frames::{FrameTable, Frames};
use caisson_core::here::Here;
use caisson_core::kernel::Kernel;
use caisson_proto::abi::{KERNEL_SLOT, Lease, MAX_VMS, Status, Syscall};
use caisson_proto::addr::{CpuId, Frame, ServiceId, VPage};
use caisson_proto::bundle::ServiceRecord;
use caisson_proto::kernel::{Caps, FrameState};
use caisson_proto::wire::{Field, Reply, Request};
use zerocopy::FromZeros;

use crate::machine::{Host, KERNEL_FRAMES, On};

/// Slot of memory.
pub const MEMORY: usize = MAX_VMS;
/// Slot of notifier.
pub const NOTIFIER: usize = MAX_VMS + 1;
/// Slot of sev-firmware.
pub const FIRMWARE: usize = MAX_VMS + 2;

/// What sev-firmware lends to the kernel for a command.
const LENT: Lease = Lease { page: VPage(0x400), pages: 1, write: true };

thread_local! {
    /// Frame tables' entries of systems that are gone, for the next.
    static ENTRIES: RefCell<Vec<&'static [AtomicU64]>> = const { RefCell::new(Vec::new()) };
}

fn entries(frames: usize) -> &'static [AtomicU64] {
    let known = ENTRIES.with_borrow_mut(|all| {
        let at = all.iter().position(|entries| entries.len() >= frames)?;
        Some(all.swap_remove(at))
    });
    let entries = known.unwrap_or_else(|| (0..frames).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak());
    entries.iter().for_each(|entry| entry.store(0, std::sync::atomic::Ordering::Relaxed));
    entries
}

/// The kernel on its machine.
pub struct System {
    kernel: Box<Kernel>,
    locals: Vec<Local>,
    /// The machine.
    pub host: Host,
    entries: &'static [AtomicU64],
}

impl Drop for System {
    fn drop(&mut self) {
        ENTRIES.with_borrow_mut(|all| all.push(self.entries));
    }
}

impl System {
    /// With so many CPUs, and so many frames beside the kernel's own. A vmm in each slot of a VM.
    pub fn new(cpus: u16, frames: u64) -> Self {
        let record = |caps: Caps, is_vmm: bool| ServiceRecord {
            caps: caps.bits(),
            budget_ms: 1000,
            is_vmm: u32::from(is_vmm),
            ..ServiceRecord::new_zeroed()
        };
        let mut records: Vec<_> = (0..MAX_VMS).map(|_| record(Caps::VCPUS, true)).collect();
        records.extend([Caps::FRAMES, Caps::WRITEBACK, Caps::FIRMWARE].map(|caps| record(caps, false)));
        let kernel = Box::new(Kernel::new());
        let size = frames + KERNEL_FRAMES;
        let entries = entries(size as usize);
        let table = FrameTable::new(&entries[..size as usize]);
        table.declare(Frame(0), KERNEL_FRAMES, Frames::plain(FrameState::Kernel));
        table.declare(Frame(KERNEL_FRAMES), frames, Frames::free(true));
        kernel.configure(records.iter(), cpus.into(), table);
        let locals = (0..cpus).map(|cpu| Local::new(CpuId(cpu))).collect();
        let system = Self { kernel, locals, host: Host::with_processor(), entries };
        for slot in 0..MAX_VMS {
            // A vmm handles VMs if it is alive.
            let _ = system.here(0).restart(slot);
        }
        system
    }

    fn here(&self, cpu: u16) -> Here<'_, On<'_>> {
        let machine = On { host: &self.host, cpu: CpuId(cpu) };
        Here { kernel: &self.kernel, local: &self.locals[usize::from(cpu)], machine }
    }

    /// The service in a slot.
    pub fn service(&self, slot: usize) -> ServiceId {
        self.kernel.service(slot).id.get()
    }

    /// A kernel operation that the service in a slot asks for, by its system call.
    pub fn ask<R: Request>(&self, slot: usize, request: &R) -> Result<R::Reply, Status> {
        let here = self.here(0);
        here.local.service.set(slot as u16);
        let rbx = if slot == FIRMWARE { LENT.to_word() } else { 0 };
        let rax = Syscall::Call as u64 | u64::from(KERNEL_SLOT) << 16;
        let mut frame = UserFrame { rax, words: request.encode(), rbx, ..UserFrame::default() };
        here.syscall(&mut frame);
        match Status::from_word(frame.rax & 0xffff) {
            Some(Status::Ok) => R::Reply::decode(&frame.words).map_err(|_| Status::Malformed),
            refused => Err(refused.unwrap_or(Status::Malformed)),
        }
    }

    /// CPUs that were asked to flush do. Whether there was one.
    pub fn flush(&self) -> bool {
        let cpus = self.host.interrupted.take();
        cpus.iter().for_each(|cpu| self.here(cpu.0).flush_if_wanted());
        !cpus.is_empty()
    }

    /// A CPU is in a vCPU's guest for a while.
    pub fn enter(&self, cpu: u16, vm: usize, vcpu: u8) {
        let (here, context) = (self.here(cpu), Context::vcpu(vm, vcpu.into()));
        if here.entering(context) {
            here.context(context).leave();
        }
    }
}
