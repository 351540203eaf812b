//! What memory's model does at each kernel operation for a vmm: looks that an event has one shootdown, may die, and breaks rules.

use caisson_proto::abi::Status;
use caisson_proto::addr::VmId;
use caisson_proto::kernel::{FrameState, GuestConvert, GuestLook, GuestUnmap, VmKind, VmState};
use caisson_proto::memory::*;
use caisson_proto::wire::{Request, Words};

use crate::config::Mutant;
use crate::mutate;
use crate::service::Sys;
use crate::world::World;

/// System calls for which an event goes on where somebody has to come in between.
const LONG: u32 = 20;
/// Steps for which a mutant keeps translations.
const UNFLUSHED: u64 = 3000;

/// What memory is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About {
    /// The request that it serves; 0 for none.
    pub request: u16,
    /// Its start isn't over.
    pub starts: bool,
    /// Mutant: it forgets what it does.
    pub idle: bool,
    /// Shootdowns so far, and whether the event must have more than one: no batch was left for it.
    shot: (u32, bool),
}

impl About {
    /// What it is about at first.
    pub fn starting() -> Self {
        Self { starts: true, ..Self::default() }
    }

    /// A request comes.
    pub fn begin(&mut self, request: u16) {
        *self = Self { request, ..Self::default() };
    }

    /// It is answered: no event of a plain VM is open, as the processor keeps nobody from its end; and if it was one, it had one
    /// shootdown.
    pub fn end(&self, world: &World, words: &Words) {
        let held = |vm: VmId| world.kernel.inspect(|tables| tables.batches.held(vm)).flatten();
        let alive = world.kernel.vms.iter().filter(|vm| vm.state() == Some(VmState::Alive));
        for vm in alive.map(|vm| vm.id.get()).filter(|vm| !world.is_encrypted(*vm)) {
            let open = held(vm);
            world.check(open.is_none(), || format!("an event of {vm:?} has no end: {open:?}"));
        }
        let handler = VmId::from_bits(words[1] as u32).index();
        let kind = |slot: usize| world.manifest.services.get(slot).map(|service| service.kind);
        let snp = world.kernel.vms.get(handler).and_then(|vm| kind(vm.handler.get().index())) == Some(VmKind::SevSnp);
        let event = matches!(self.request, Discard::OP | Punch::OP) && !snp && !self.shot.1;
        world.check(!event || self.shot.0 <= 1, || format!("an event has {} shootdowns", self.shot.0));
    }

    /// Whether memory changes what is private, or where pages are.
    fn matters(&self) -> bool {
        matches!(self.request, Attribute::OP | Fill::OP | Punch::OP | Poison::OP | Discard::OP | SlotSet::OP)
    }

    /// Before the kernel is asked. What is answered in its place, if a rule is broken so.
    pub fn before(&self, sys: &Sys<'_>, words: &mut Words) -> Option<Words> {
        let (world, op) = (sys.world, words[0] as u16);
        let unmaps = op == GuestUnmap::OP;
        if unmaps
            && words[6] != 0
            && let Some(root) = world.kernel.vms.get(VmId::from_bits(words[1] as u32).index()).and_then(|vm| vm.root(0))
            && let Some(page) = world.nested(root, words[3])
        {
            world.breaking.borrow_mut().insert(page.frame.0);
        }
        let mutant = world.config.mutant?;
        let events = matches!(self.request, Discard::OP | Punch::OP);
        let nothing = |words: &Words| {
            let (mut nothing, next) = ([0; 8], words[3] + words[4]);
            nothing[2] = next;
            Some(nothing)
        };
        match mutant {
            Mutant::ForgottenAttribute if self.idle && op == GuestConvert::OP => return Some([0; 8]),
            Mutant::ClaimedTurn if self.request == Attribute::OP && op == GuestConvert::OP => return Some([0; 8]),
            Mutant::PoisonKept if unmaps && words[6] != 0 => return nothing(words),
            Mutant::PoisonReused if unmaps => words[6] = 0,
            Mutant::ShootEach if unmaps && events => words[5] = 0,
            Mutant::EventLeftOpen if unmaps && self.starts => return nothing(words),
            Mutant::GiveBackLess if unmaps && words[4] > 1 => words[4] -= 1,
            Mutant::GiveBackMore if unmaps && self.request == GiveBack::OP => words[4] += 1,
            Mutant::NoEventFlush if unmaps && words[4] == 0 => {
                world.unflushed.set((VmId::from_bits(words[1] as u32).index(), world.step.get() + UNFLUSHED));
            }
            Mutant::SampleEventEarly if unmaps => {
                mutate::event(world, sys.slot, words);
                // So that some enter meanwhile.
                (0..LONG).for_each(|_| sys.null());
            }
            _ => {}
        }
        None
    }

    /// After the kernel answered.
    pub fn after(&mut self, sys: &Sys<'_>, asked: &Words, answer: &mut Result<Words, Status>) {
        let (world, op) = (sys.world, asked[0] as u16);
        if op == GuestUnmap::OP {
            let more = asked[5] != 0;
            self.shot.1 |= *answer == Err(Status::Busy);
            self.shot.0 += u32::from(!more && answer.as_ref().is_ok_and(|it| it[1] > 0 || it[3] > 0));
            if world.breaks(Mutant::SampleEventEarly) && !more {
                mutate::event_over(world);
            }
        }
        if let Ok(words) = answer
            && op == GuestLook::OP
        {
            let (owned, private) = (FrameState::Owned as u64, FrameState::Private as u64);
            match self.request {
                Discard::OP if world.breaks(Mutant::DiscardPrivate) && words[1] == private => words[1] = owned,
                Punch::OP if world.breaks(Mutant::PunchShared) && words[1] == owned => words[1] = private,
                _ => {}
            }
        }
        if self.matters() && matches!(op, GuestUnmap::OP | GuestConvert::OP) {
            self.may_die(world);
        }
    }

    /// Memory, or notifier below it, dies here: at one place that was chosen, or by chance.
    fn may_die(&self, world: &World) {
        let at = world.boundaries.get() + 1;
        world.boundaries.set(at);
        let left = world.mortal.get();
        let by_chance = left > 0 && world.config.mortal > 0 && world.rng.chance(1, world.config.mortal);
        if by_chance {
            world.mortal.set(left - 1);
        }
        let victims = [world.manifest.memory, world.manifest.notifier];
        let chosen =
            (victims.into_iter().zip(world.config.dies_at)).find_map(|(victim, place)| (place == at).then_some(victim));
        let victim = chosen.or_else(|| by_chance.then(|| victims[usize::from(world.rng.chance(1, 4))]));
        if victim.is_some() {
            world.crash.set(victim);
        }
    }
}

/// What a request is answered with where a rule is broken.
pub fn bend(world: &World, words: &Words, answer: (Status, Words)) -> (Status, Words) {
    let Some(mutant) = world.config.mutant else { return answer };
    let op = words[0] as u16;
    let taken = match (mutant, answer.0) {
        (Mutant::ClaimedPopulate, Status::NotFound) | (Mutant::WrongKind, Status::State) => op == Populate::OP,
        (Mutant::OverlapTaken, Status::Exists)
        | (Mutant::SwapAmid, Status::Busy)
        | (Mutant::GmemTwice, Status::Invalid) => op == SlotSet::OP,
        (Mutant::UsedPoison, Status::Poisoned) => op == Populate::OP,
        _ => false,
    };
    if taken { (Status::Ok, [0; 8]) } else { answer }
}
