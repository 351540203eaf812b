//! vCPUs: guests that touch memory, ask their vmm for things and check what they read.

use caisson_core::context::Context;
use caisson_core::frames::Frames;
use caisson_proto::addr::{Frame, Gpa, LARGE_PAGES, VmId};
use caisson_proto::exits::code;
use caisson_proto::kernel::FrameState;
use caisson_proto::kernel::VmKind;
use caisson_proto::rmp::{ASSIGNED, LARGE};
use caisson_proto::vcpu::{Exit, ExitFlags, Resume};

use crate::config::Mutant;
use crate::rng::Rng;
use crate::world::World;

/// What a guest asks its vmm for: rax of a VMMCALL.
pub mod ask {
    /// Nothing.
    pub const NOTHING: u64 = 0;
    /// Kick the vCPU in rcx.
    pub const KICK: u64 = 1;
    /// Power off.
    pub const POWER_OFF: u64 = 2;
    /// Reset.
    pub const RESET: u64 = 3;
    /// Crash.
    pub const CRASH: u64 = 4;
    /// Look at the page rcx through the window; it has what rdx says.
    pub const LOOK: u64 = 5;
    /// This vCPU is done for good.
    pub const DONE: u64 = 6;
    /// Do something that isn't allowed, of the kind in rcx.
    pub const MISCHIEF: u64 = 7;
    /// Send rcx through the services that echo.
    pub const ECHO: u64 = 8;
}

/// Pages that an encrypted guest likes best: about those of its launch.
const NEAR: u64 = 16;

/// A vCPU.
#[derive(Debug)]
pub struct Guest {
    /// Its VM.
    pub vm: VmId,
    index: u8,
    /// Kind of its VM.
    pub kind: VmKind,
    /// Its ASID.
    pub asid: u32,
    root: Frame,
    /// Where the CPUID table is.
    pub table: Frame,
    rng: Rng,
    /// Its next entry begins without translations of its ASID.
    pub stale: bool,
    /// Between entry and exit.
    pub inside: bool,
    left: u32,
    /// A page that it touches when it goes on: it faulted there.
    faulted: Option<(u64, bool)>,
    pages: u64,
    siblings: u64,
    rip: u64,
}

/// What a guest does next.
pub enum Act {
    /// It goes on.
    On,
    /// It does nothing that leaves it.
    Spin,
    /// It leaves.
    Exit(Exit),
}

impl Guest {
    /// A vCPU that never ran.
    pub fn new(vm: VmId, index: u8, kind: VmKind, asid: u32, root: Frame, table: Frame, world: &World) -> Self {
        Self {
            vm,
            index,
            kind,
            asid,
            root,
            table,
            rng: Rng::new(world.rng.next()),
            stale: true,
            inside: false,
            left: world.config.actions,
            faulted: None,
            pages: world.manifest.guest_pages,
            siblings: u64::from(world.config.vcpus),
            rip: 0x1000,
        }
    }

    /// It gets its VM's ASID. Which it had before.
    pub fn bind(&mut self, asid: u32) -> u32 {
        self.stale = true;
        std::mem::replace(&mut self.asid, asid)
    }

    /// The vmm's reply.
    pub fn resume(&mut self, resume: &Resume, root: Frame) {
        self.rip = resume.rip;
        self.root = root;
    }

    /// The exit that it is at.
    pub fn exit(&self, code: u16, rax: u64, rcx: u64) -> Exit {
        Exit {
            vcpu: self.index,
            context: 0,
            code,
            flags: ExitFlags::empty(),
            info1: 0,
            info2: 0,
            rip: self.rip,
            rax,
            rcx,
            rdx: 0,
            next_rip: self.rip + 3,
        }
    }

    fn ask(&self, what: u64, rcx: u64) -> Act {
        Act::Exit(self.exit(code::VMMCALL, what, rcx))
    }

    /// One step of it.
    fn act(&mut self, world: &World, cpu: usize) -> Act {
        if let Some((gfn, write)) = self.faulted.take() {
            return self.touch(world, cpu, gfn, write);
        }
        if self.left == 0 {
            let how = match (self.index, self.rng.below(8)) {
                (0, 0) => ask::CRASH,
                (0, 1..3) if world.resets.get() > 0 => ask::RESET,
                (0, _) => ask::POWER_OFF,
                _ => ask::DONE,
            };
            return self.ask(how, 0);
        }
        self.left -= 1;
        if self.rng.chance(world.config.diligence, 16) {
            return self.work(world, cpu);
        }
        match self.rng.below(24) {
            0 => self.ask(ask::NOTHING, 0),
            1..3 => self.ask(ask::KICK, self.rng.below(self.siblings)),
            3 => self.ask(ask::MISCHIEF, self.rng.below(12)),
            4..6 => self.ask(ask::ECHO, self.rng.next()),
            6 => Act::Exit(self.exit(code::HLT, 0, self.rng.below(3000))),
            7 => Act::Spin,
            8..11 => self.look(world),
            _ => self.work(world, cpu),
        }
    }

    /// Uses a few pages; of an encrypted guest often those that it was launched with, which are private.
    fn work(&mut self, world: &World, cpu: usize) -> Act {
        for _ in 0..1 + self.rng.below(6) {
            let near = self.kind != VmKind::Plain && self.rng.chance(2, 3);
            let gfn = self.rng.below(if near { NEAR } else { self.pages });
            let write = self.rng.chance(1, 2);
            let act = self.touch(world, cpu, gfn, write);
            if !matches!(act, Act::On) || self.faulted.is_some() {
                return act;
            }
        }
        Act::On
    }

    fn look(&self, world: &World) -> Act {
        match world.memory.borrow().pick(self.vm.bits(), &self.rng) {
            Some(gfn) => self.ask(ask::LOOK, gfn),
            None => Act::On,
        }
    }

    /// Reads or writes a page.
    fn touch(&mut self, world: &World, cpu: usize, gfn: u64, write: bool) -> Act {
        let Some(here) = world.cpus.get(cpu) else { return Act::On };
        let known = here.guest_tlb.borrow().get(self.asid, gfn);
        let (frame, secret) = match known {
            Some(known) => known,
            None => {
                let Some(mapping) = world.nested(self.root, gfn) else {
                    self.faulted = Some((gfn, write));
                    let exit = self.exit(code::NPF, 0, 0);
                    return Act::Exit(Exit { info1: u64::from(write) << 1, info2: gfn << 12, ..exit });
                };
                (mapping.frame, false)
            }
        };
        let mapped = world.owner.borrow().get(frame.0) == Some((self.root.0, gfn));
        let Some(is) = world.frame(frame) else {
            // What was private it uses on, as long as it can.
            if secret {
                self.access(world, cpu, (gfn, frame.0), (true, mapped, write));
                return Act::On;
            }
            // Somebody is changing the tables. It will know later whether its page is private.
            self.faulted = (!world.config.restless).then_some((gfn, write));
            return Act::On;
        };
        let held = world.kernel.inspect(|tables| tables.batches.held(self.vm)).flatten();
        if held.is_some_and(|batch| is == Frames::quarantined(batch)) {
            // Its event goes on: until the shootdown at its end the page may be used, and nobody gets it.
            self.access(world, cpu, (gfn, frame.0), (secret, mapped, write));
            return Act::On;
        }
        let private = is == Frames::of(FrameState::Private, self.vm);
        world.check(private || is == Frames::of(FrameState::Owned, self.vm), || {
            format!("VM {:?} uses frame {:#x} at gfn {gfn:#x}, which is {is:?}", self.vm, frame.0)
        });
        self.check_entry(world, gfn, frame, private);
        here.guest_tlb.borrow_mut().insert(self.asid, gfn, (frame, private));
        self.access(world, cpu, (gfn, frame.0), (private, mapped, write));
        Act::On
    }

    /// By the RMP a private page of an SNP guest is its own, at this address, and no other is anybody's.
    fn check_entry(&self, world: &World, gfn: u64, frame: Frame, private: bool) {
        let of = |frame| world.silicon.registers.rmp.0.get(Frame(frame)).unwrap_or_default();
        // One of 2 MiB is its first frame's.
        let head = of(frame.0 & !(LARGE_PAGES - 1));
        let within = if head.has(LARGE) { frame.0 % LARGE_PAGES } else { 0 };
        let entry = of(frame.0 - within);
        let own = (true, self.asid, Gpa(gfn.wrapping_sub(within) << 12));
        let is = (entry.has(ASSIGNED), entry.asid(), entry.gpa());
        let right = if private && self.kind == VmKind::SevSnp { is == own } else { !entry.has(ASSIGNED) };
        world.check(right, || {
            format!("VM {:?} uses frame {:#x} at gfn {gfn:#x}, and by the RMP it is {entry:x?}", self.vm, frame.0)
        });
    }

    /// Reads or writes a page that is mapped, through its caches.
    fn access(
        &mut self, world: &World, cpu: usize, (gfn, frame): (u64, u64), (private, mapped, write): (bool, bool, bool),
    ) {
        let key = (self.vm.bits(), gfn);
        // Which alias it uses is its own affair; a mad one harms itself alone.
        let mad = matches!(self.kind, VmKind::Sev | VmKind::SevEs) && self.rng.chance(1, 64);
        let encrypts = private && self.kind != VmKind::Plain;
        let asid = if encrypts != mad { self.asid } else { 0 };
        let mut caches = world.caches.borrow_mut();
        if mad && mapped {
            world.spoiled.borrow_mut().insert(key);
            world.memory.borrow_mut().insert(key, None);
        }
        let sane = caches.key(asid).is_some() && !world.spoiled.borrow().contains(&key);
        if write {
            let value = self.rng.next() | 1;
            caches.write(cpu, frame, asid, self.vm.bits(), value);
            if mapped {
                world.memory.borrow_mut().insert(key, sane.then_some(value));
            }
        } else if mapped && sane {
            let reads = caches.read(cpu, frame, asid);
            let wrote = world.memory.borrow().get(key).unwrap_or(Some(0));
            world.check(wrote.is_none_or(|wrote| wrote == reads), || {
                format!("VM {:?} reads {reads:#x} at gfn {gfn:#x} and wrote {wrote:x?}", self.vm)
            });
        }
    }
}

/// All vCPUs, by context.
#[derive(Debug, Default)]
pub struct Guests {
    all: Vec<Option<Box<Guest>>>,
    /// Contexts that have one.
    contexts: Vec<Context>,
}

impl Guests {
    /// The vCPU of a context.
    pub fn get_mut(&mut self, context: Context) -> Option<&mut Guest> {
        self.all.get_mut(context.index())?.as_deref_mut()
    }

    /// It is made. What the context had before.
    pub fn insert(&mut self, context: Context, guest: Guest) -> Option<Box<Guest>> {
        if self.all.len() <= context.index() {
            self.all.resize_with(context.index() + 1, || None);
        }
        let before = self.all[context.index()].replace(Box::new(guest));
        if before.is_none() {
            self.contexts.push(context);
        }
        before
    }

    /// It is gone.
    pub fn remove(&mut self, context: Context) -> Option<Box<Guest>> {
        self.contexts.retain(|of| *of != context);
        self.take(context)
    }

    /// It takes a step, and is put back after it.
    fn take(&mut self, context: Context) -> Option<Box<Guest>> {
        self.all.get_mut(context.index())?.take()
    }

    fn put(&mut self, context: Context, guest: Box<Guest>) {
        if let Some(place) = self.all.get_mut(context.index()) {
            *place = Some(guest);
        }
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Guest> {
        self.contexts.iter().filter_map(|context| self.all.get(context.index())?.as_deref())
    }

    /// Contexts that have one.
    pub fn contexts(&self) -> &[Context] {
        &self.contexts
    }
}

/// The guest of a context is entered.
pub fn entered(world: &World, cpu: usize, vcpu: Context) {
    let mut guests = world.guests.borrow_mut();
    let Some(guest) = guests.get_mut(vcpu) else {
        return world.fail(|| format!("context {} is entered and has no frames", vcpu.number()));
    };
    guest.inside = true;
    let (asid, vm, kind) = (guest.asid, guest.vm, guest.kind);
    let stale = std::mem::take(&mut guest.stale);
    if let Some(cpu) = world.cpus.get(cpu).filter(|_| stale && !world.breaks(Mutant::KeptTranslations)) {
        cpu.guest_tlb.borrow_mut().flush(asid);
    }
    let has_key = kind == VmKind::Plain || world.caches.borrow().key(asid).is_some();
    world.check(has_key || world.silicon.lied.get(), || format!("VM {vm:?} runs under ASID {asid}, which has no key"));
    let shared = guests.iter().find(|other| other.inside && other.asid == asid && other.vm != vm);
    world.check(shared.is_none(), || format!("ASID {asid} is two VMs'"));
}

/// It was left.
pub fn left(world: &World, vcpu: Context) {
    if let Some(guest) = world.guests.borrow_mut().get_mut(vcpu) {
        guest.inside = false;
    }
}

/// One step of a guest.
pub fn step(world: &World, cpu: usize, vcpu: Context) -> Act {
    let Some(mut guest) = world.guests.borrow_mut().take(vcpu) else {
        world.fail(|| format!("context {} runs and has no frames", vcpu.number()));
        return Act::Spin;
    };
    let act = guest.act(world, cpu);
    world.guests.borrow_mut().put(vcpu, guest);
    act
}
