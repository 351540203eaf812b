//! A run: the scheduler, and what becomes of it.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use caisson_core::frames::{FrameTable, Frames};
use caisson_proto::addr::Frame;
use caisson_proto::kernel::FrameState;
use corosensei::{Coroutine, CoroutineResult};

use crate::check;
use crate::config::{Config, Mutant};
use crate::cpu;
use crate::history::What;
use crate::manifest::Manifest;
use crate::mutate;
use crate::programs;
use crate::rng::Rng;
use crate::silicon;
use crate::stacks;
pub use crate::world::Ends;
use crate::world::{Mode, World};

/// Bytes of a CPU's stack.
const STACK: usize = 256 << 10;
/// Steps between two looks at all tables.
const LOOK: u64 = 256;
/// Steps that CPUs have to come to rest after the machine was switched off.
const REST: u64 = 200_000;

/// What a run was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Steps.
    pub steps: u64,
    /// What is in its history: system calls, entries, exits, interrupts, commands, injected faults.
    pub events: u64,
    /// Ticks of the clock.
    pub ticks: u64,
    /// Calls between services that were answered.
    pub answered: u64,
    /// Exits of guests.
    pub exits: u64,
    /// Commands that the secure processor answered.
    pub commands: u64,
    /// Dirty lines that were written back.
    pub written: u64,
    /// How services ended.
    pub ends: Ends,
    /// The supervisor's verdict.
    pub verdict: u8,
    /// All VMs ended and their memory was free again.
    pub settled: bool,
    /// A digest of everything that happened.
    pub digest: u64,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub what: String,
    /// What happened before.
    pub history: String,
    /// What was simulated.
    pub config: Box<Config>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.history)?;
        writeln!(f, "{:?}", self.config)?;
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "{}", replay(self.seed, &self.config))
    }
}

/// The command that runs a seed again.
pub fn replay(seed: u64, config: &Config) -> String {
    let mutant = config.mutant.map_or("none", Mutant::name);
    let hunt = if config.hunt { format!(" --mutant {mutant}") } else { String::new() };
    format!("replay: cargo xtask sim{hunt} --seeds 1 --from {seed}")
}

impl std::error::Error for Failure {}

type CpuLife = Coroutine<(), (), ()>;

thread_local! {
    /// Frame tables' entries of runs that are over, by length.
    static ENTRIES: RefCell<Vec<&'static [AtomicU64]>> = const { RefCell::new(Vec::new()) };
}

/// Entries for a frame table, all zero.
fn entries(frames: u64) -> &'static [AtomicU64] {
    let known = ENTRIES.with_borrow_mut(|all| {
        let at = all.iter().position(|entries| entries.len() as u64 == frames)?;
        Some(all.swap_remove(at))
    });
    let entries = known.unwrap_or_else(|| (0..frames).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak());
    entries.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    entries
}

fn boot(seed: u64, config: &Config) -> (Rc<World>, &'static [AtomicU64]) {
    let rng = Rng::new(seed);
    let manifest = Manifest::new(config, &rng);
    let records: Vec<_> = (0..manifest.services.len()).map(|slot| manifest.record(slot)).collect();
    let world = World::new(*config, rng.next(), manifest);
    let entries = entries(config.frames);
    let table = FrameTable::new(entries);
    table.declare(Frame(0), config.frames, Frames::free(true));
    table.declare(Frame(0), check::KERNEL_FRAMES, Frames::plain(FrameState::Kernel));
    world.kernel.configure(records.iter(), config.cpus, table);
    // Whoever booted the machine has left its lines.
    let left = config.frames - silicon::DONATION * 2..config.frames;
    left.for_each(|frame| world.caches.borrow_mut().write(0, frame, 0, 0, 0));
    (world, entries)
}

fn power_on(world: &Rc<World>) -> Vec<CpuLife> {
    (0..world.config.cpus)
        .map(|number| {
            let world = Rc::clone(world);
            let life = move |yielder: &corosensei::Yielder<(), ()>, ()| cpu::run(&world, number, yielder);
            stacks::spawn(STACK, life)
        })
        .collect()
}

/// Simulates what a seed stands for.
///
/// # Errors
/// The first rule that was broken.
pub fn run(seed: u64, config: &Config) -> Result<Report, Failure> {
    let (world, entries) = boot(seed, config);
    let mut cpus = power_on(&world);
    schedule(&world, &mut cpus);
    let events = world.history.borrow().events();
    world.check(events >= config.fewest, || format!("it came to its end after {events} events"));
    let failure = world.failure.borrow().clone();
    let result = match failure {
        None => Ok(Report {
            seed,
            steps: world.step.get(),
            events: world.history.borrow().events(),
            ticks: world.now.get(),
            answered: world.answered.get(),
            exits: world.exits.get(),
            commands: world.silicon.commands.get(),
            written: world.caches.borrow().written,
            ends: world.ends.get(),
            verdict: world.over.get().unwrap_or(u8::MAX),
            settled: world.settled.get(),
            digest: world.history.borrow().digest(),
        }),
        Some(what) => {
            let history = world.history.borrow().tell(&world.manifest.names) + &check::state(&world);
            Err(Failure { seed, what, history, config: Box::new(*config) })
        }
    };
    stop(&world, cpus);
    ENTRIES.with_borrow_mut(|all| all.push(entries));
    result
}

/// Chooses CPUs until the machine is off and rests, or a rule was broken.
fn schedule(world: &Rc<World>, cpus: &mut [CpuLife]) {
    let mut off_at = None;
    while world.failure.borrow().is_none() {
        let step = world.step.get() + 1;
        world.step.set(step);
        world.now.set(world.now.get() + 1);
        if step > world.config.steps {
            return world.fail(|| format!("no end after {step} steps{}", places(world)));
        }
        if world.over.get().is_some() {
            let since = *off_at.get_or_insert(step);
            if check::is_quiet(world) || step - since > REST {
                check::quiet(world);
                check::tables(world);
                if world.settled.get() {
                    check::settled(world);
                } else {
                    world.check(world.given_up.get(), || "the machine was ended and nobody says why".into());
                }
                return;
            }
        }
        disturb(world);
        mutate::step(world);
        surroundings(world);
        let Some(number) = world.rows.pick(world.now.get(), &world.rng) else {
            if !sleep(world) {
                check::quiet(world);
                return world.fail(|| format!("nothing happens any more{}", places(world)));
            }
            continue;
        };
        world.running.set(number);
        if let Some(cpu) = cpus.get_mut(number)
            && matches!(cpu.resume(()), CoroutineResult::Return(()))
        {
            return world.fail(|| format!("cpu{number} stopped"));
        }
        check::step(world);
        if step.is_multiple_of(LOOK) {
            check::tables(world);
        }
    }
}

/// What happens beside the CPUs: the processor works, and lines are evicted.
fn surroundings(world: &World) {
    world.silicon.tick(world);
    let mut caches = world.caches.borrow_mut();
    caches.step = world.step.get();
    if world.rng.chance(1, 2) {
        caches.evict_hot();
    }
    if world.rng.chance(world.config.evictions, 64) {
        caches.evict(&world.rng, world.config.frames);
    }
    if let Some(broken) = caches.take_broken() {
        world.fail(|| broken);
    }
}

/// All CPUs wait: the time of the next timer comes. False if none is set that matters.
fn sleep(world: &World) -> bool {
    let spins = world.cpus.iter().any(|cpu| matches!(cpu.mode(), Mode::Spins(_)));
    let deaf = world.cpus.iter().map(|cpu| cpu.deaf_until()).filter(|until| *until > world.now.get()).min();
    let answer = Some(world.silicon.answers_at.get()).filter(|at| *at != 0);
    if check::next_deadline(world).is_none() && !spins && deaf.or(answer).is_none() {
        return false;
    }
    let timers = world.cpus.iter().map(|cpu| cpu.timer());
    let next = timers.chain(deaf).chain(answer).min().unwrap_or(u64::MAX);
    if next == u64::MAX {
        return false;
    }
    world.now.set(world.now.get().max(next));
    true
}

/// Now and then a CPU is deaf for a while, pages are taken from a living VM, or the supervisor is made to kill a service.
fn disturb(world: &World) {
    if world.deaf.get() > 0 && world.rng.chance(1, 2000) {
        world.deaf.set(world.deaf.get() - 1);
        let number = world.rng.below(world.cpus.len() as u64) as usize;
        let time = [100, 1000, 10_000][world.rng.below(3) as usize];
        world.cpus[number].deafen(world.now.get() + time);
        world.note(number, What::Said("INJECTED: is deaf for", time));
    }
    if world.config.reclaims > world.taken.get() && world.rng.chance(1, world.config.calm) {
        world.taken.set(world.taken.get() + 1);
        return world.interrupt(world.manifest.memory, programs::RECLAIM);
    }
    if world.deaths_left() == 0 || world.over.get().is_some() || !world.rng.chance(1, 3000) {
        return;
    }
    let slot = 1 + world.rng.below(world.manifest.services.len() as u64 - 1) as usize;
    world.deaths.set(world.deaths.get() - 1);
    world.kill.set(Some(slot));
    world.note(0, What::Fault(slot, "is to be killed"));
    world.interrupt(world.manifest.supervisor, programs::KILL);
}

fn places(world: &World) -> String {
    let mut places: Vec<String> = Vec::new();
    for (number, cpu) in world.cpus.iter().enumerate().filter(|(_, cpu)| cpu.mode() != Mode::Idle) {
        places.push(format!("cpu{number} {:?}", cpu.mode()));
    }
    format!(" ({})", places.join(", "))
}

/// Lets all coroutines come to their end.
fn stop(world: &Rc<World>, mut cpus: Vec<CpuLife>) {
    world.stopping.set(true);
    for _ in 0..2000 {
        let mut left = false;
        for cpu in cpus.iter_mut().filter(|cpu| !cpu.done()) {
            left |= matches!(cpu.resume(()), CoroutineResult::Yield(()));
        }
        if !left {
            break;
        }
    }
    // After a failure a CPU may wait for what never comes.
    cpus.into_iter().for_each(|cpu| stacks::end(cpu, STACK, 0, || ()));
    world.lives.end();
}
