//! The model of a vmm: makes its VM, gives it memory as it faults, does what the guest asks; and now and then what it
//! may not.

use caisson_core::frames::Frames;
use caisson_core::svm::npt::look_up;
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{Gfn, ServiceId, Tsc, VPage, VcpuId, VmId};
use caisson_proto::exits::code;
use caisson_proto::kernel::FrameState;
use caisson_proto::kernel::{CpuidLoad, TimerSet, VcpuKick, VcpuRun, VmKind};
use caisson_proto::supervisor::{CrashKind, ExitKind, SetupError};
use caisson_proto::vcpu::{Action, Exit, Resume};
use caisson_proto::wire::Words;

use super::again::{end, rest};
use super::launch::{Launch, Standing, make};
use super::mischief::mischief;
use super::shown::Shown;
use super::{Server, echo, serve};
use crate::guest::ask;
use crate::hardware::LENDABLE;
use crate::history::What;
use crate::service::Sys;
use crate::world::{View, World};

/// Calls that are tried again when their service died or is busy.
pub const TRIES: u32 = 100;

struct Vmm<'a, 'b> {
    sys: &'a Sys<'b>,
    vm: VmId,
    vcpus: u8,
    /// vCPUs that are to stop at their next exit.
    stopping: Vec<u8>,
    /// vCPUs that were stopped and are to run again.
    stopped: Vec<u8>,
    done: [bool; 8],
    /// Faults in a row that memory had no time for.
    busy: u32,
    kind: VmKind,
    launch: Launch,
    running: bool,
    shown: Shown,
}

impl Vmm<'_, '_> {
    fn world(&self) -> &World {
        self.sys.world
    }

    fn end(&self, kind: ExitKind, detail: u64) {
        end(self.sys, kind, detail);
    }

    /// Gives the guest memory around a fault. False: not now.
    fn populate(&mut self, gfn: u64) -> bool {
        let (sys, world) = (self.sys, self.sys.world);
        let chunk = [1, 4, 64, 512][world.rng.below(4) as usize];
        let start = gfn / chunk * chunk;
        let pages = chunk.min(world.manifest.guest_pages - start);
        let memory = sys.known(world.manifest.memory);
        match self.shown.private.populate(sys, gfn, start..start + pages) {
            Ok(_) => {
                self.busy = 0;
                return true;
            }
            Err(Status::Dead | Status::Died | Status::Busy) if self.busy < TRIES => self.busy += 1,
            Err(status) => {
                world.note(world.running.get(), What::Said("memory refuses", status as u64));
                if status == Status::NotFound && self.busy < TRIES {
                    self.busy += 1;
                    self.shown.restore(sys);
                    return false;
                }
                let kept = world.taken.get() == 0 && !self.shown.given;
                let promised = memory.generation() == 0 && status == Status::Exhausted && kept;
                world.check(!promised, || format!("memory broke its promise to {:?}", self.vm));
                self.end(ExitKind::Crashed, CrashKind::Hung as u64);
            }
        }
        false
    }

    /// Whether a page is in the window.
    fn there(&self, gfn: u64) -> bool {
        look_up(&View(self.world()), World::window(self.sys.slot), Gfn(World::in_window(gfn))).is_some()
    }

    /// Looks at a page of the guest that it looked at before.
    fn look_again(&self) {
        let world = self.world();
        let Some(cpu) = world.cpus.get(world.running.get()) else { return };
        let slot = self.sys.slot;
        let held: Vec<u64> = cpu.tlb.borrow().keys().filter(|(of, _)| *of == slot).map(|(_, gfn)| *gfn).collect();
        if let Some(again) = world.rng.pick(&held) {
            self.look(again);
        }
    }

    /// Looks at a page of the guest through the window.
    fn look(&self, gfn: u64) {
        let world = self.world();
        let slot = self.sys.slot;
        let Some(cpu) = world.cpus.get(world.running.get()) else { return };
        let known = cpu.tlb.borrow().get(&(slot, gfn)).copied();
        let mapped = || look_up(&View(world), World::window(slot), Gfn(World::in_window(gfn))).map(|it| it.frame);
        let Some(frame) = known.or_else(mapped) else {
            // Unless the kernel is just mapping it, or it was taken back meanwhile.
            let quiet = world.kernel.inspect(|_| ()).is_some();
            let there = world.owns(self.vm, gfn) && !world.is_private(self.vm, gfn);
            return world.check(!(quiet && there), || format!("gfn {gfn:#x} isn't in the window of slot {slot}"));
        };
        cpu.tlb.borrow_mut().insert((slot, gfn), frame);
        if let Some(is) = world.frame(frame) {
            world.check(is == Frames::of(FrameState::Owned, self.vm), || {
                format!("slot {slot} sees frame {:#x} at gfn {gfn:#x}, which is {is:?}", frame.0)
            });
        }
        let holds = world.caches.borrow_mut().read(world.running.get(), frame.0, 0);
        let wrote = world.memory.borrow().get((self.vm.bits(), gfn)).flatten();
        world.check(wrote.is_none_or(|wrote| wrote == holds) || !world.owns(self.vm, gfn), || {
            format!("slot {slot} reads {holds:#x} at gfn {gfn:#x} where its guest wrote {wrote:x?}")
        });
    }

    /// Sends something through the services that echo.
    fn echo(&self, number: u64) {
        let (sys, world) = (self.sys, self.sys.world);
        let words: Words = [number, world.rng.next(), number ^ 1, 3, 4, 5, 6, world.rng.next()];
        let lease = world.rng.chance(1, 2).then(|| {
            let pages = 1 + world.rng.below(4);
            let write = pages == 1 && world.rng.chance(1, 2);
            let first = LENDABLE.start + 2 * world.rng.below(16);
            Lease { page: VPage(first), pages, write }
        });
        if let Some(lease) = lease
            && !sys.stopped()
        {
            for page in 0..lease.pages {
                let value = echo::page_value(&words, page);
                world.pages.borrow_mut().insert((sys.slot, lease.page.0 + page), value);
            }
        }
        let (status, reply) = sys.call_raw(world.manifest.echo, &words, lease);
        let expected = echo::answer(&words, sys.id);
        world.check(status != Status::Ok || reply == expected || sys.stopped(), || {
            format!("slot {} gets the echo {reply:x?} instead of {expected:x?}", sys.slot)
        });
        let allowed = matches!(status, Status::Ok | Status::Dead | Status::Died);
        world.check(allowed, || format!("an echo is answered with {status:?}"));
    }

    /// Has a vCPU stop, or lets those run again that are stopped.
    fn stop_and_go(&mut self, own: u8) {
        let (sys, world) = (self.sys, self.sys.world);
        let vm = self.vm;
        self.stopped.retain(|&index| sys.ask(&VcpuRun { vcpu: VcpuId { vm, index } }).is_err());
        let index = world.rng.below(u64::from(self.vcpus)) as u8;
        let other = index != 0 && index != own && !self.stopped.contains(&index) && !self.stopping.contains(&index);
        if other && world.rng.chance(1, 8) && sys.ask(&VcpuKick { vcpu: VcpuId { vm, index } }).is_ok() {
            self.stopping.push(index);
        }
    }

    fn asked(&mut self, exit: &Exit) -> Action {
        let world = self.sys.world;
        match exit.rax {
            ask::KICK => {
                let vcpu = VcpuId { vm: self.vm, index: exit.rcx as u8 };
                let _ = self.sys.ask(&VcpuKick { vcpu });
            }
            ask::POWER_OFF => self.end(ExitKind::PoweredOff, 0),
            ask::RESET => {
                world.resets.set(world.resets.get().saturating_sub(1));
                self.end(ExitKind::Reset, 0);
            }
            ask::CRASH => self.end(ExitKind::Crashed, CrashKind::TripleFault as u64),
            ask::LOOK => self.look(exit.rcx),
            ask::DONE => {
                if let Some(done) = self.done.get_mut(usize::from(exit.vcpu)) {
                    *done = true;
                }
                return Action::Park;
            }
            ask::MISCHIEF => mischief(self.sys, self.vm, self.vcpus, exit.rcx),
            ask::ECHO => self.echo(exit.rcx),
            _ => {}
        }
        Action::Run
    }
}

impl Server for Vmm<'_, '_> {
    fn call(&mut self, sender: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
        self.world().fail(|| format!("{sender:?} called a vmm"));
        (Status::Malformed, [0; 8])
    }

    fn doorbell(&mut self, bits: u64) {
        let vcpu = VcpuId { vm: self.vm, index: 0 };
        if !self.running {
            return self.go_on();
        }
        if bits & doorbell::INTERRUPT != 0
            && let Err(status) = self.sys.ask(&VcpuKick { vcpu })
        {
            let gone = matches!(status, Status::State | Status::Dead);
            self.world().check(gone || self.sys.stopped(), || format!("a kick is refused: {status:?}"));
            return self.end(ExitKind::Crashed, CrashKind::Hung as u64);
        }
        self.stop_and_go(0);
        if !self.stopped.is_empty() {
            let _ = self.sys.ask(&TimerSet { at: Tsc(self.world().now.get() + 500) });
        }
    }

    fn exit(&mut self, exit: &Exit) -> Resume {
        let world = self.sys.world;
        world.exits.set(world.exits.get() + 1);
        if world.rng.chance(1, 4) {
            self.look_again();
        }
        let mut resume = Resume::at(exit.next_rip, exit.rax);
        match exit.code {
            code::NPF => {
                resume.rip = exit.rip;
                if !self.populate(exit.info2 >> 12) {
                    // The guest will fault again.
                    resume.action = Action::Park;
                    resume.deadline = world.now.get() + 100;
                }
            }
            code::HLT => {
                resume.action = Action::Park;
                resume.deadline = world.now.get() + exit.rcx + 1;
            }
            code::VMMCALL => resume.action = self.asked(exit),
            code::KICK | code::TIMER => {
                resume.rip = exit.rip;
                if self.done.get(usize::from(exit.vcpu)).is_some_and(|done| *done) {
                    resume.action = Action::Park;
                }
                if let Some(at) = self.stopping.iter().position(|index| *index == exit.vcpu) {
                    self.stopped.push(self.stopping.swap_remove(at));
                    resume.action = Action::Stop;
                }
            }
            other => world.fail(|| format!("exit code {other:#x}")),
        }
        if world.rng.chance(1, 4) {
            self.stop_and_go(exit.vcpu);
        }
        if self.kind != VmKind::Plain && world.rng.chance(1, 6) {
            let gfn = world.rng.below(world.manifest.guest_pages);
            let pages = (1 + world.rng.below(4)).min(world.manifest.guest_pages - gfn);
            self.launch.turn(self.sys, gfn, pages);
        }
        if world.config.changes > 0 && world.rng.chance(1, world.config.changes) {
            self.shown.change(self.sys);
        }
        if world.rng.chance(1, 16) {
            let _ = self.sys.ask(&TimerSet { at: Tsc(world.now.get() + world.rng.below(2000)) });
        }
        if self.stopped.is_empty() { resume } else { self.with_deadline(resume) }
    }
}

impl Vmm<'_, '_> {
    /// While vCPUs are stopped somebody has to look after them.
    fn with_deadline(&self, resume: Resume) -> Resume {
        let soon = self.world().now.get() + 500;
        let deadline = if resume.deadline == 0 { soon } else { resume.deadline.min(soon) };
        Resume { deadline, ..resume }
    }
}

impl Vmm<'_, '_> {
    /// Writes what is to be measured, plainly.
    fn fill(&mut self, pages: u64) {
        let (sys, world) = (self.sys, self.sys.world);
        for gfn in 0..pages {
            let mapped = look_up(&View(world), World::window(sys.slot), Gfn(World::in_window(gfn)));
            if let Some(frame) = mapped.map(|it| it.frame.0).filter(|_| !sys.stopped()) {
                let value = world.rng.next() | 1;
                world.check_host(frame, "is written by a vmm");
                world.caches.borrow_mut().write(world.running.get(), frame, 0, self.vm.bits(), value);
                // Unless it is just being taken away, and only the window still has it.
                if world.owns(self.vm, gfn) {
                    world.memory.borrow_mut().insert((self.vm.bits(), gfn), Some(value));
                }
            }
        }
    }

    /// Goes on with the launch; lets the vCPUs run when it is done.
    fn go_on(&mut self) {
        let (sys, world, vm) = (self.sys, self.sys.world, self.vm);
        match self.launch.look(sys) {
            Standing::Waits => {
                // Also where no bell comes: of a service that died, or for an ASID that somebody gives up.
                let _ = sys.ask(&TimerSet { at: Tsc(world.now.get() + 500) });
            }
            Standing::Failed => self.end(ExitKind::Crashed, CrashKind::Hung as u64),
            Standing::Launched => {
                self.running = true;
                for index in 0..self.vcpus {
                    let vcpu = VcpuId { vm, index };
                    let table = Lease { page: VPage(LENDABLE.start), pages: 1, write: false };
                    let loaded = sys.ask_lending(&CpuidLoad { vcpu }, Some(table));
                    let running = loaded.and_then(|_| sys.ask(&VcpuRun { vcpu }));
                    if running == Err(Status::Busy) && self.kind != VmKind::Plain {
                        // A command of the processor's is about it.
                        self.stopped.push(index);
                        let _ = sys.ask(&TimerSet { at: Tsc(world.now.get() + 100) });
                        continue;
                    }
                    let destroyed = matches!(running, Err(Status::State | Status::Dead)) && world.taken.get() > 0;
                    // A launch that a dead sev-firmware left half done isn't taken up again here.
                    let restarted = world.kernel.service(world.manifest.firmware).id.get().generation() > 0;
                    let lost = self.kind != VmKind::Plain && (restarted || world.silicon.failed.get());
                    let excused = destroyed || sys.stopped() || lost;
                    world.check(running.is_ok() || excused, || format!("vCPU {index} of {vm:?}: {running:?}"));
                    if running.is_err() {
                        return self.end(ExitKind::Crashed, CrashKind::Hung as u64);
                    }
                }
            }
        }
    }
}

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let world = sys.world;
    let kind = world.manifest.services.get(sys.slot).map_or(VmKind::Plain, |service| service.kind);
    rest(sys);
    let Ok((vm, vcpus)) = make(sys) else {
        return end(sys, ExitKind::BadSetup, SetupError::Memory as u64);
    };
    let pages = 2 + world.rng.below(14);
    let launch = Launch::new(vm, kind, pages);
    let (stopping, stopped, done) = (Vec::new(), Vec::new(), [false; 8]);
    let mut vmm = Vmm {
        sys,
        vm,
        vcpus,
        stopping,
        stopped,
        done,
        busy: 0,
        kind,
        launch,
        running: false,
        shown: Shown::new(vm, kind),
    };
    if kind != VmKind::Plain {
        (0..pages).for_each(|gfn| while !sys.stopped() && !vmm.there(gfn) && !vmm.populate(gfn) {});
        vmm.fill(pages);
    }
    vmm.go_on();
    serve(sys, &mut vmm);
}
