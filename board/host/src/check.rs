//! The invariants, checked from outside.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use caisson_core::asids::Asid;
use caisson_core::batches::{Batch, MAX_BATCHES};
use caisson_core::context::{CONTEXTS, Context, Kind, Phase};
use caisson_core::frames::{Frames, STATES};
use caisson_core::kernel::Tables;
use caisson_core::svm::npt::look_up;
use caisson_proto::addr::{Frame, Gfn};
use caisson_proto::kernel::{AsidState, FrameState};

use crate::world::{Mode, View, World};

/// Frames of the kernel's own.
pub const KERNEL_FRAMES: u64 = 64;

/// What must hold between any two steps.
pub fn step(world: &World) {
    counts(world);
    parked(world);
    for number in world.rows.in_guests() {
        let cpu = &world.cpus[number];
        let (Mode::Guest(context) | Mode::Spins(context)) = cpu.mode() else { continue };
        let state = world.kernel.context(context);
        let pending = state.pending.load(Ordering::SeqCst);
        world.check(pending == 0 || cpu.ipis() != 0 || cpu.timer() <= world.now.get(), || {
            format!("cpu{number} is in the guest of context {} and nobody tells it of {pending:#x}", context.number())
        });
        let home = state.home.load(Ordering::SeqCst);
        world.check(usize::from(home) == number, || {
            format!("context {} runs on cpu{number} and is at home on cpu{home}", context.number())
        });
    }
}

/// A vCPU that was kicked doesn't stay parked, once its CPU has done with it.
fn parked(world: &World) {
    for context in world.guests.borrow().contexts() {
        let state = world.kernel.context(*context);
        let kicked = state.pending.load(Ordering::SeqCst) != 0 && state.phase.get() == Phase::Parked;
        let home = world.cpus.get(usize::from(state.home.load(Ordering::SeqCst)));
        world.check(!kicked || home.is_none_or(|cpu| cpu.mode() == Mode::Kernel), || {
            format!("{:?} is parked and was kicked", context.kind())
        });
    }
}

fn counts(world: &World) {
    let Some((counts, total)) = world.kernel.inspect(|tables| (tables.frames.counts(), tables.frames.size())) else {
        return;
    };
    // A count that went below zero is an enormous one.
    let sum: u128 = counts.iter().map(|count| u128::from(*count)).sum();
    world.check(sum == u128::from(total), || format!("{sum} frames are counted of {total}: {counts:?}"));
    let quarantined = counts[FrameState::Quarantined as usize];
    if world.quarantined.replace(quarantined) != quarantined {
        paid(world);
    }
}

/// A frame that is free is somebody else's in a moment: no line of a guest's may still have to be written back to it.
fn paid(world: &World) {
    for (frame, asid, cpu, step) in world.caches.borrow().owed() {
        let free = world.frame(Frame(frame)).is_some_and(|is| is.state == FrameState::Free);
        world.check(!free, || {
            format!("frame {frame:#x} is free and cpu{cpu} has a dirty line of it (ASID {asid}) since step {step}")
        });
    }
}

/// What must hold whenever nobody changes the tables. Takes longer.
pub fn tables(world: &World) {
    let of_vms = |counts: [u64; STATES]| counts[FrameState::Owned as usize] + counts[FrameState::Private as usize];
    let Some(owned) = world.kernel.inspect(|tables| of_vms(tables.frames.counts())) else { return };
    let owner = world.owner.borrow();
    world.check(owned == owner.count(), || format!("{owned} frames are owned and {} are mapped", owner.count()));
    let mut last = (u64::MAX, None);
    for (frame, (root, gfn)) in owner.iter() {
        let is = world.frame(Frame(frame));
        if root != last.0 {
            last = (root, world.vm_of_root(Frame(root)).map(|(_, id)| id));
        }
        let vm = last.1;
        world.check(
            vm.is_some_and(|vm| {
                is == Some(Frames::of(FrameState::Owned, vm)) || is == Some(Frames::of(FrameState::Private, vm))
            }),
            || format!("frame {frame:#x} is mapped at gfn {gfn:#x} of {vm:?} and is {is:?}"),
        );
        if is.is_some_and(|is| is.state == FrameState::Private) {
            hidden(world, root, frame, gfn);
        }
    }
    for frame in world.adopted.borrow().iter() {
        let is = world.frame(Frame(*frame));
        world.check(is.is_some_and(|is| is.state == FrameState::Kernel && is.vm().is_some()), || {
            format!("frame {frame:#x} is adopted and is {is:?}")
        });
    }
}

/// What is a guest's alone isn't in its handler's window.
fn hidden(world: &World, root: u64, frame: u64, gfn: u64) {
    let Some((slot, vm)) = world.vm_of_root(Frame(root)) else { return };
    let handler = world.kernel.vms[slot].handler.get().index();
    let shown = look_up(&View(world), World::window(handler), Gfn(World::in_window(gfn)));
    world.check(shown.is_none_or(|it| it.frame.0 != frame), || {
        format!("gfn {gfn:#x} of {vm:?} is private and in the window of slot {handler}")
    });
}

/// Whether nothing will ever happen again, but for the watchdog's looks.
pub fn is_quiet(world: &World) -> bool {
    let idle = world.cpus.iter().all(|cpu| matches!(cpu.mode(), Mode::Idle) && !cpu.is_told());
    idle && next_deadline(world).is_none()
}

/// The next time at which something other than the watchdog wants a CPU.
pub fn next_deadline(world: &World) -> Option<u64> {
    let deadlines = world.locals.iter().map(|local| local.next_deadline.get());
    deadlines.filter(|at| *at != caisson_core::cpu::NEVER).min()
}

/// What must hold when nothing happens any more: nobody waits.
pub fn quiet(world: &World) {
    let mut text = String::new();
    for number in 0..CONTEXTS as u16 {
        let Some(context) = Context::from_number(number) else { continue };
        let state = world.kernel.context(context);
        if matches!(state.phase.get(), Phase::Waiting | Phase::Ready | Phase::Running) {
            let call = *state.call.lock();
            let _ = write!(
                text,
                "; {:?} is {:?}, last waited for {:?} on behalf of {:?}",
                context.kind(),
                state.phase.get(),
                call.target,
                call.caller
            );
        }
        if let Kind::Vcpu(..) = context.kind()
            && state.phase.get() == Phase::Parked
            && state.pending.load(Ordering::SeqCst) != 0
        {
            let _ = write!(text, "; {:?} is parked and was kicked", context.kind());
        }
    }
    for (slot, name) in world.manifest.names.iter().enumerate() {
        let service = world.kernel.service(slot);
        if service.turn.is_taken() {
            let _ = write!(text, "; {name} is taken by {:?} in {:?}", service.caller.get(), service.id.get());
        }
        if service.is_alive() && service.bells.any() {
            let _ = write!(text, "; {name} was rung and nobody goes");
        }
    }
    world.check(text.is_empty(), || format!("nothing happens any more{text}"));
}

/// What there is, for the reader of a failure.
pub fn state(world: &World) -> String {
    let mut text = String::new();
    for vm in world.kernel.vms.iter().filter(|vm| vm.state().is_some()) {
        let (id, handler, state) = (vm.id.get(), vm.handler.get(), vm.state());
        let _ = writeln!(text, "VM {id:?} of {handler:?}: {state:?}");
    }
    for batch in open_batches(world) {
        let _ = writeln!(text, "{batch:?}");
    }
    let asids = |tables: &mut Tables| {
        let rows = (1..=world.config.sev_asids.1).filter_map(|asid| Some((asid, *tables.asids.get(asid)?)));
        rows.collect::<Vec<_>>()
    };
    for (number, asid) in world.kernel.inspect(asids).filter(|_| world.config.encrypted).unwrap_or_default() {
        let _ = writeln!(text, "ASID {number}: {asid:?}");
    }
    for (slot, name) in world.manifest.names.iter().enumerate() {
        let service = world.kernel.service(slot);
        let (id, alive, caller) = (service.id.get(), service.is_alive(), service.caller.get());
        let _ = writeln!(text, "{name}: {id:?}, alive {alive}, serves {caller:?}, rung {}", service.bells.any());
    }
    text
}

/// What must hold when all VMs are gone and memory said that it has settled.
pub fn settled(world: &World) {
    let left: Vec<_> = world.kernel.vms.iter().filter(|vm| vm.state().is_some()).map(|vm| vm.id.get()).collect();
    world.check(left.is_empty(), || format!("all is settled and there are VMs: {left:?}"));
    let open = open_batches(world);
    world.check(open.is_empty(), || format!("all is settled and there are batches: {open:?}"));
    if let Some((counts, total)) = world.kernel.inspect(|tables| (tables.frames.counts(), tables.frames.size())) {
        let free = counts[FrameState::Free as usize] + counts[FrameState::Firmware as usize];
        // What a processor that fails doesn't give back.
        let leaked = |frame: &&u64| world.frame(Frame(**frame)).is_some_and(|is| is.state == FrameState::Leaked);
        let broken = world.breaking.borrow().iter().filter(leaked).count() as u64;
        let kept = if world.silicon.failed.get() { counts[FrameState::Leaked as usize] } else { broken };
        world.check(free + kept == total - KERNEL_FRAMES, || {
            format!("all is settled and frames are missing: {counts:?}")
        });
    }
    let adopted = world.adopted.borrow().len();
    world.check(adopted == 0, || format!("all is settled and the kernel holds {adopted} frames of VMs"));
    let rows = |tables: &mut Tables| {
        (1..=world.config.sev_asids.1).filter_map(|asid| tables.asids.get(asid).copied()).collect::<Vec<_>>()
    };
    let asids = world.kernel.inspect(rows).unwrap_or_default();
    let held = |asid: &Asid| asid.handle != 0 || matches!(asid.state, AsidState::Bound | AsidState::Active);
    let lost = asids.iter().find(|asid| held(asid) && !world.silicon.failed.get());
    world.check(lost.is_none(), || format!("all is settled and an ASID is held: {lost:?}"));
    let lent = world.lent.borrow();
    world.check(lent.is_empty(), || format!("all is settled and pages are lent: {lent:?}"));
}

fn open_batches(world: &World) -> Vec<Batch> {
    let open = |tables: &mut Tables| (0..MAX_BATCHES).filter_map(|slot| tables.batches.get(slot).copied()).collect();
    world.kernel.inspect(open).unwrap_or_default()
}
