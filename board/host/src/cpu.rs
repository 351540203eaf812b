//! A CPU: enters services and guests as the kernel says, takes interrupts, and goes into the kernel. What
//! `kernel/image` does on the machine.

use std::rc::Rc;

use caisson_core::context::Context;
use caisson_core::cpu::UserFrame;
use caisson_core::here::Here;
use caisson_core::ipc::Next;
use caisson_core::schedule::Choice;
use caisson_proto::abi::{KERNEL_SLOT, Syscall};
use caisson_proto::addr::ServiceId;
use caisson_proto::wire::Words;
use corosensei::Yielder;

use crate::config::Mutant;
use crate::guest::{self, Act};
use crate::hardware::Hardware;
use crate::history::What;
use crate::mutate;
use crate::world::{Cpu, Mode, NEVER, World, ipi};

/// Ticks that a service in circles takes for one of its steps.
const CIRCLE: u64 = 5_000;

struct Running<'a> {
    world: &'a Rc<World>,
    number: usize,
    cpu: &'a Cpu,
    hardware: Hardware<'a>,
}

/// Runs a CPU until the simulation stops.
pub fn run(world: &Rc<World>, number: usize, yielder: &Yielder<(), ()>) {
    let (Some(cpu), Some(local)) = (world.cpus.get(number), world.locals.get(number)) else { return };
    let hardware = Hardware { world, cpu: number, yielder };
    let running = Running { world, number, cpu, hardware };
    let here = Here { kernel: &world.kernel, local, machine: &running.hardware };
    let mut frame = UserFrame::default();
    if number == 0 {
        let started = here.restart(world.manifest.supervisor);
        world.check(started.is_ok(), || format!("the supervisor doesn't start: {started:?}"));
    }
    here.tick();
    let mut next = Next::Pick;
    while !world.stopping.get() {
        next = match next {
            Next::User => running.user(&here, &mut frame),
            Next::Pick => match here.pick(&mut frame) {
                Choice::User => running.user(&here, &mut frame),
                Choice::Guest(context) => running.guest(&here, context, &mut frame),
                Choice::Idle => running.idle(&here, &mut frame),
            },
        };
        cpu.set_mode(Mode::Kernel);
    }
}

type On<'a> = Here<'a, &'a Hardware<'a>>;

impl Running<'_> {
    /// Lets others go on; false if the simulation stops.
    fn wait(&self, mode: Mode) -> bool {
        self.cpu.set_mode(mode);
        self.hardware.yielder.suspend(());
        !self.world.stopping.get()
    }

    /// Takes the interrupts that are pending. What comes next, if it isn't what was interrupted.
    fn interrupts(&self, here: &On<'_>, user: bool, frame: &mut UserFrame) -> Option<Next> {
        self.cpu.set_mode(Mode::Kernel);
        let (kinds, devices) = self.cpu.take();
        let timer = self.cpu.timer() <= self.world.now.get();
        // The watchdog's looks at CPUs that idle would fill the history.
        if user || kinds != 0 || !devices.is_empty() || here.local.context.get().is_some() {
            self.world.note(self.number, What::Interrupt(timer, kinds, !devices.is_empty()));
        }
        if kinds & ipi::FLUSH != 0 {
            self.world.answer_wishes(self.number);
        }
        if kinds != 0 {
            here.flush_if_wanted();
        }
        for (slot, bits) in devices {
            here.ring(slot, bits);
        }
        if timer {
            self.cpu.set_timer(NEVER);
            if here.tick() && user {
                // Before its next life has begun elsewhere.
                self.world.calls.borrow_mut().remove(&usize::from(here.local.service.get()));
                return Some(here.overrun(frame));
            }
        }
        None
    }

    fn idle(&self, here: &On<'_>, frame: &mut UserFrame) -> Next {
        self.hardware.world.answer_wishes(self.number);
        here.flush_if_wanted();
        while self.wait(Mode::Idle) {
            if self.world.interrupted(self.number) {
                self.interrupts(here, false, frame);
                break;
            }
        }
        Next::Pick
    }

    fn user(&self, here: &On<'_>, frame: &mut UserFrame) -> Next {
        let world = self.world;
        let slot = usize::from(here.local.service.get());
        self.enter_user(slot, frame);
        let mut circles = false;
        loop {
            if !self.wait(if circles { Mode::Circles(slot) } else { Mode::User(slot) }) {
                return Next::User;
            }
            if world.interrupted(self.number) && world.rng.chance(1, world.config.latency) {
                if let Some(next) = self.interrupts(here, true, frame) {
                    return next;
                }
                continue;
            }
            if circles {
                world.now.set(world.now.get() + CIRCLE);
                continue;
            }
            match self.fault(slot) {
                Some("crashes") => {
                    self.cpu.set_mode(Mode::Kernel);
                    world.calls.borrow_mut().remove(&slot);
                    (frame.rip, frame.rsp, frame.rax) = (0x40_0000, 0x10ff_fff0, 8);
                    return here.exception(frame, 14, 4);
                }
                Some(_) => circles = true,
                None => {
                    let Some(call) = world.lives.run(world, slot, *frame) else {
                        world.fail(|| format!("the program of slot {slot} returned"));
                        return Next::Pick;
                    };
                    self.cpu.set_mode(Mode::Kernel);
                    world.note(self.number, What::Syscall(slot, call.rax, call.words));
                    *frame = call;
                    self.deafen(frame);
                    return here.syscall(frame);
                }
            }
        }
    }

    /// A service is entered.
    fn enter_user(&self, slot: usize, frame: &mut UserFrame) {
        let world = self.world;
        world.note(self.number, What::Enter(slot, frame.rax, frame.words));
        world.check(self.cpu.space.get() == slot, || {
            format!("slot {slot} runs in the space of {}", self.cpu.space.get())
        });
        world.check(world.kernel.service(slot).is_alive(), || format!("slot {slot} runs and is dead"));
        for (number, other) in world.cpus.iter().enumerate().filter(|(number, _)| *number != self.number) {
            let same = matches!(other.mode(), Mode::User(there) | Mode::Circles(there) if there == slot);
            world.check(!same, || format!("slot {slot} runs on cpu{number} and cpu{}", self.number));
        }
        let sender = (frame.rax >> 32) as u32;
        if sender != 0 && sender & 1 << 31 == 0 {
            delivered(world, slot, ServiceId::from_bits(sender), &frame.words);
        }
        if world.breaks(Mutant::StolenTurn) && world.rng.chance(1, 16) {
            let _ = world.kernel.service(slot).turn.leave();
        }
    }

    /// A fault of the service, if it is its time.
    fn fault(&self, slot: usize) -> Option<&'static str> {
        let world = self.world;
        let left = world.deaths_left();
        if world.crash.get() == Some(slot) {
            world.crash.set(None);
            world.note(self.number, What::Fault(slot, "crashes"));
            return Some("crashes");
        }
        if left == 0 || slot == world.manifest.supervisor || !world.rng.chance(1, 400) {
            return None;
        }
        world.deaths.set(left - 1);
        let kind = if world.rng.chance(1, 4) { "runs in circles" } else { "crashes" };
        world.note(self.number, What::Fault(slot, kind));
        Some(kind)
    }

    /// Mutant: the generation in a call is ignored.
    fn deafen(&self, frame: &mut UserFrame) {
        let slot = (frame.rax >> 16 & 0xffff) as u16;
        let call = frame.rax & 0xff == Syscall::Call as u64 && slot != KERNEL_SLOT;
        if self.world.breaks(Mutant::DeafToGenerations) && call {
            let present: ServiceId = self.world.kernel.service(usize::from(slot)).id.get();
            frame.rax = Syscall::Call as u64 | u64::from(present.bits()) << 16;
        }
    }

    fn guest(&self, here: &On<'_>, context: Context, frame: &mut UserFrame) -> Next {
        let world = self.world;
        // What happens between the choice and the entry.
        if world.rng.chance(1, 4) && !self.wait(Mode::Kernel) {
            return Next::Pick;
        }
        if !here.entering(context) && !world.breaks(Mutant::EnterAnyway) {
            return Next::Pick;
        }
        if world.breaks(Mutant::NoShootDown) {
            here.context(context).leave();
        }
        mutate::entered(world, self.number, context);
        guest::entered(world, self.number, context);
        world.note(self.number, What::Guest(context.number()));
        let mut spins = false;
        loop {
            if !self.wait(if spins { Mode::Spins(context) } else { Mode::Guest(context) }) {
                break Next::Pick;
            }
            if world.interrupted(self.number) && world.rng.chance(1, world.config.latency) {
                self.leave(here, context);
                self.interrupts(here, false, frame);
                break Next::Pick;
            }
            if spins {
                continue;
            }
            match guest::step(world, self.number, context) {
                Act::On => {}
                Act::Spin => spins = true,
                Act::Exit(exit) => {
                    world.note(self.number, What::Exit(context.number(), exit));
                    self.leave(here, context);
                    break here.vm_exit(frame, context, &exit);
                }
            }
        }
    }

    fn leave(&self, here: &On<'_>, context: Context) {
        self.cpu.set_mode(Mode::Kernel);
        guest::left(self.world, context);
        if !self.world.breaks(Mutant::NoShootDown) {
            here.context(context).leave();
        }
        // What happens between the exit and its handling.
        if self.world.rng.chance(1, 4) {
            self.hardware.yielder.suspend(());
        }
    }
}

/// Checks that a message was sent, to this service, and once.
fn delivered(world: &World, slot: usize, sender: ServiceId, words: &Words) {
    let present = world.kernel.service(sender.index()).id.get();
    world.check(present == sender, || format!("slot {slot} serves {sender:?}, which is dead"));
    let mut calls = world.calls.borrow_mut();
    let Some(pending) = calls.get_mut(&sender.index()) else {
        drop(calls);
        return world.fail(|| format!("slot {slot} gets a message that {sender:?} didn't send"));
    };
    let (before, sent) = (std::mem::replace(&mut pending.delivered, true), *pending);
    drop(calls);
    let receiver = world.kernel.service(slot).id.get();
    world.check(!before, || format!("a message of {sender:?} is delivered twice"));
    world.check(sent.words == *words, || format!("a message of {sender:?} was changed on the way"));
    world.check(sent.target == receiver, || {
        format!("a message of {sender:?} to {:?} is delivered to {receiver:?}", sent.target)
    });
}
