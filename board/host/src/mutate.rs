//! Mutants that reach into the kernel's tables, since what they weaken is a rule of the kernel's own.

use std::sync::atomic::Ordering;

use caisson_core::batches::Batches;
use caisson_core::context::{Context, Kind};
use caisson_core::cpus::CpuSet;
use caisson_core::frames::FrameTable;
use caisson_core::kernel::Tables;
use caisson_proto::addr::{CpuId, VmId};
use caisson_proto::kernel::AsidState;
use caisson_proto::mailbox;
use caisson_proto::wire::Words;

use crate::config::Mutant;
use crate::world::{Mode, World};

/// A CPU entered a guest.
pub fn entered(world: &World, cpu: usize, vcpu: Context) {
    let Kind::Vcpu(slot, _) = vcpu.kind() else { return };
    if world.breaks(Mutant::OmitCpu) && world.rng.chance(1, 2) {
        forget(world, cpu, slot);
    }
    // It wasn't in the sample.
    let unmapping = world.unmapping.borrow();
    if unmapping.as_ref().is_some_and(|(_, of, rows)| *of == slot && rows[cpu] >> (slot % 64) & 1 == 0) {
        forget(world, cpu, slot);
        world.withheld.borrow_mut().push((cpu, slot));
    }
}

/// A CPU takes pages from a VM: what a sample that is taken now would have.
pub fn unmapping(world: &World, cpu: usize, slot: usize) {
    let mut unmapping = world.unmapping.borrow_mut();
    if world.breaks(Mutant::SampleEarly) && unmapping.is_none() {
        let rows = world.kernel.cpus.iter().take(world.config.cpus).map(|cpu| cpu.ran.load(Ordering::SeqCst));
        *unmapping = Some((cpu, slot, rows.collect()));
    }
}

/// A CPU of this service begins an event, or ends it: CPUs that enter its VM's guest until it is over aren't in its sample.
pub fn event(world: &World, memory: usize, words: &Words) {
    let slot = VmId::from_bits(words[1] as u32).index();
    let cpu = world.running.get();
    let mut unmapping = world.unmapping.borrow_mut();
    if words[5] != 0 && unmapping.is_none() && memory == world.manifest.memory {
        let rows = world.kernel.cpus.iter().take(world.config.cpus).map(|cpu| cpu.ran.load(Ordering::SeqCst));
        *unmapping = Some((cpu, slot, rows.collect()));
    }
}

/// It is over.
pub fn event_over(world: &World) {
    world.unmapping.take();
    for (cpu, slot) in world.withheld.take() {
        world.kernel.cpus[cpu].ran.fetch_or(1 << (slot % 64), Ordering::SeqCst);
    }
}

/// Whether a vCPU keeps the translations that an event's end is to flush.
pub fn unflushed(world: &World, vcpu: Context) -> bool {
    let (slot, until) = world.unflushed.get();
    matches!(vcpu.kind(), Kind::Vcpu(of, _) if of == slot) && world.step.get() < until
}

fn forget(world: &World, cpu: usize, slot: usize) {
    world.kernel.cpus[cpu].ran.fetch_and(!(1 << (slot % 64)), Ordering::SeqCst);
}

/// Between two steps.
pub fn step(world: &World) {
    let amid = world.breaks(Mutant::SampleEventEarly);
    let unmapper = world.unmapping.borrow().as_ref().map(|(cpu, ..)| *cpu);
    if unmapper.and_then(|cpu| world.cpus.get(cpu)).is_some_and(|cpu| cpu.mode() != Mode::Kernel && !amid) {
        world.unmapping.take();
        for (cpu, slot) in world.withheld.take() {
            world.kernel.cpus[cpu].ran.fetch_or(1 << (slot % 64), Ordering::SeqCst);
        }
    }
    let Some(mutant) = world.config.mutant else { return };
    let last = world.config.sev_asids.1;
    let change: &dyn Fn(&mut Tables) = match mutant {
        Mutant::PayEarly => &|tables| {
            let asked = (0..world.config.cpus).filter(|cpu| world.kernel.cpus[*cpu].flush_wanted.get());
            asked.for_each(|cpu| pay(&mut tables.batches, &tables.frames, CpuId(cpu as u16)));
        },
        Mutant::StaleBatch => &|tables| {
            let memory = world.kernel.service(world.manifest.memory);
            if memory.id.get().generation() > 0 && memory.is_alive() {
                (0..world.config.cpus as u16).for_each(|cpu| pay(&mut tables.batches, &tables.frames, CpuId(cpu)));
            }
        },
        Mutant::PayForAll if world.acknowledged.take() => &|tables| {
            (0..world.config.cpus as u16).for_each(|cpu| pay(&mut tables.batches, &tables.frames, CpuId(cpu)));
        },
        Mutant::NoWbinvd => &|tables| change(tables, last, AsidState::Dirty, AsidState::Flushed),
        Mutant::BindBeforeDfFlush => &|tables| {
            free(tables, last, AsidState::Flushed);
        },
        Mutant::LateDeactivation => &|tables| {
            let is = |asid| tables.asids.get(asid).is_some_and(|it| it.state == AsidState::Flushed);
            let between = (1..=last).any(is);
            if between {
                change(tables, last, AsidState::Dirty, AsidState::Flushed);
            }
        },
        Mutant::ReuseLeaked => &|tables| {
            for asid in 1..=last {
                if let Some(row) = tables.asids.get(asid).filter(|row| row.state == AsidState::Flushed) {
                    row.handle = 0;
                }
            }
        },
        Mutant::HeldPaid => &|tables| {
            let held = world.kernel.vms.iter().find_map(|vm| tables.batches.held(vm.id.get()));
            if let Some(batch) = held {
                tables.batches.release(batch, &CpuSet::EMPTY);
                if let Ok(paid) = tables.batches.settle(batch) {
                    tables.frames.paid(paid.frames);
                }
            }
        },
        Mutant::WrongGuest => &|tables| swap_handles(world, tables, last),
        _ => return,
    };
    let _ = world.kernel.inspect(change);
}

/// A CPU counts as having flushed.
fn pay(batches: &mut Batches, frames: &FrameTable, cpu: CpuId) {
    while let Some(open) = batches.pay(cpu, false) {
        frames.paid(open.frames);
    }
}

fn change(tables: &mut Tables, last: u32, from: AsidState, to: AsidState) {
    for asid in 1..=last {
        if let Some(row) = tables.asids.get(asid).filter(|row| row.state == from) {
            row.state = to;
        }
    }
}

fn free(tables: &mut Tables, last: u32, from: AsidState) {
    for asid in 1..=last {
        if let Some(row) = tables.asids.get(asid).filter(|row| row.state == from && row.handle == 0) {
            (row.state, row.vm) = (AsidState::Free, VmId::default());
        }
    }
}

/// Two guests' handles change places once a launch began.
fn swap_handles(world: &World, tables: &mut Tables, last: u32) {
    if tables.mailbox.command != mailbox::LAUNCH_START || !world.rng.chance(1, 8) {
        return;
    }
    let held = |asid: &u32, tables: &mut Tables| tables.asids.get(*asid).is_some_and(|row| row.handle != 0);
    let known: Vec<u32> = (1..=last).filter(|asid| held(asid, tables)).collect();
    let [first, second, ..] = known[..] else { return };
    let handle = |asid, tables: &mut Tables| tables.asids.get(asid).map_or(0, |row| row.handle);
    let (one, other) = (handle(first, tables), handle(second, tables));
    for (asid, handle) in [(first, other), (second, one)] {
        if let Some(row) = tables.asids.get(asid) {
            row.handle = handle;
        }
    }
}
