//! The state of the simulated machine.
//!
//! Everything runs on one thread, in coroutines: one for each CPU, one for each life of a service. Cells are borrowed
//! only between two places where a coroutine can be suspended.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use caisson_core::context::{Context, Kind};
use caisson_core::cpu::Local;
use caisson_core::frames::Frames;
use caisson_core::kernel::Kernel;
use caisson_core::svm::npt::{Mapping, Tree, look_up};
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{CpuId, Frame, Gfn, PAGE_SIZE, ServiceId, VmId};

use caisson_proto::layout;
use caisson_proto::rmp::ASSIGNED;
use caisson_proto::wire::Words;

use crate::cache::Caches;
use crate::config::{Config, Mutant};
pub use crate::cpus::{Cpu, Mode, NEVER, Rows, ipi};
use crate::guest::Guests;
use crate::history::{History, What};
use crate::known::Known;
use crate::manifest::Manifest;
use crate::owners::Owners;
use crate::rng::Rng;
use crate::service::Lives;
use crate::silicon::Silicon;
pub use crate::view::View;
use crate::view::{Contents, SPACES};

/// Ticks of the clock in a millisecond.
pub const KHZ: u64 = 1000;
/// Deaths of memory and notifier amid what they do for vmms.
const MORTAL: u32 = 3;
/// How services ended, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// VMs that powered off.
    pub powered_off: u32,
    /// VMs that reset.
    pub reset: u32,
    /// VMs that crashed.
    pub crashed: u32,
    /// VMs that could not be set up.
    pub bad_setup: u32,
    /// Services that faulted.
    pub faulted: u32,
    /// Services that were killed.
    pub killed: u32,
}

/// A call between services that isn't over.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// To whom.
    pub target: ServiceId,
    /// What was sent.
    pub words: Words,
    /// It was delivered.
    pub delivered: bool,
    /// What was replied.
    pub answer: Option<(Status, Words)>,
}

/// The bytes of a page.
pub type Page = Box<[u8; PAGE_SIZE as usize]>;

/// The machine.
pub struct World {
    /// What is simulated.
    pub config: Config,
    /// Who there is.
    pub manifest: Manifest,
    /// The kernel.
    pub kernel: Kernel,
    /// Each CPU's own part of the kernel.
    pub locals: Vec<Local>,
    /// Chance.
    pub rng: Rng,
    /// The clock.
    pub now: Cell<u64>,
    /// Steps so far.
    pub step: Cell<u64>,
    /// The CPU whose step it is.
    pub running: Cell<usize>,
    /// CPUs.
    pub cpus: Vec<Cpu>,
    /// What is asked of all of them at each step.
    pub rows: Rc<Rows>,
    /// Contents of the kernel's tables.
    pub tables: RefCell<Contents>,
    /// The kernel's frames that are mapped in it.
    pub adopted: RefCell<BTreeSet<u64>>,
    /// Where each frame is mapped in a guest.
    pub owner: RefCell<Owners>,
    /// All caches, and memory.
    pub caches: RefCell<Caches>,
    /// The secure processor.
    pub silicon: Silicon,
    /// What guests wrote, by VM and gfn.
    pub memory: RefCell<Known>,
    /// Pages of which a mad guest used the wrong alias: what they hold is anybody's guess until they are unmapped.
    pub spoiled: RefCell<BTreeSet<(u32, u64)>>,
    /// Bytes of services' pages.
    pub bytes: RefCell<BTreeMap<(usize, u64), Page>>,
    /// Frames in quarantine at the last look.
    pub quarantined: Cell<u64>,
    /// A CPU wrote back just now.
    pub acknowledged: Cell<bool>,
    /// A CPU that is taking pages from the VM in a slot, and each CPU's row as that began.
    pub unmapping: RefCell<Option<(usize, usize, Vec<u64>)>>,
    /// Rows that a mutant keeps from who is unmapping: CPU and slot.
    pub withheld: RefCell<Vec<(usize, usize)>>,
    /// vCPUs, by context.
    pub guests: RefCell<Guests>,
    /// Pages lent to each service: by whom.
    pub lent: RefCell<BTreeMap<usize, (usize, Lease)>>,
    /// What services have in pages of their own.
    pub pages: RefCell<BTreeMap<(usize, u64), u64>>,
    /// Calls that aren't over, by caller's slot.
    pub calls: RefCell<BTreeMap<usize, Pending>>,
    /// Changes of VMs' mappings that are complete, by VM.
    pub changes: RefCell<BTreeMap<u32, u64>>,
    /// Those that are going on: a number, the VM, first page and one past the last.
    pub open: RefCell<Vec<(u64, u32, u64, u64)>>,
    /// The page of the ring from memory to notifier, in words.
    pub ring: RefCell<Vec<u64>>,
    /// The services' programs.
    pub lives: Lives,
    /// What the supervisor is asked to kill.
    pub kill: Cell<Option<usize>>,
    /// How often pages were to be taken from a living VM.
    pub taken: Cell<u32>,
    /// How often others than vmms began or ended to take pages.
    pub takings: Cell<u64>,
    /// Contents that frames have before they are mapped.
    pub filled: RefCell<BTreeMap<u64, u64>>,
    /// Frames that memory began to break.
    pub breaking: RefCell<BTreeSet<u64>>,
    /// Those that are known to be broken.
    pub broken: RefCell<BTreeSet<u64>>,
    /// Kernel operations of memory's on behalf of vmms that change what is private, or within events.
    pub boundaries: Cell<u64>,
    /// Deaths that are still to come at these.
    pub mortal: Cell<u32>,
    /// A service that crashes as soon as it is entered.
    pub crash: Cell<Option<usize>>,
    /// Mutant: slot of a VM whose vCPUs aren't flushed, and until which step.
    pub unflushed: Cell<(usize, u64)>,
    /// Slot of the vmm whose VM memory is just destroying, and that isn't told yet.
    pub doomed: Cell<Option<usize>>,
    /// Resets that VMs still may do.
    pub resets: Cell<u32>,
    /// How often a CPU may still be deaf.
    pub deaf: Cell<u32>,
    /// Deaths still to be injected.
    pub deaths: Cell<u32>,
    /// The supervisor gave a service up that died too often.
    pub given_up: Cell<bool>,
    /// The supervisor found everything settled.
    pub settled: Cell<bool>,
    /// The machine was switched off, with this status.
    pub over: Cell<Option<u8>>,
    /// The coroutines are to come to an end.
    pub stopping: Cell<bool>,
    /// What happened.
    pub history: RefCell<History>,
    /// What went wrong first.
    pub failure: RefCell<Option<String>>,
    /// Calls between services that were answered; guests' exits.
    pub answered: Cell<u64>,
    /// Exits of guests.
    pub exits: Cell<u64>,
    /// How services ended.
    pub ends: Cell<Ends>,
}

impl World {
    /// A machine that was just switched on.
    pub fn new(config: Config, seed: u64, manifest: Manifest) -> Rc<Self> {
        let (cpus, rows) = Cpu::all(config.cpus);
        Rc::new(Self {
            config,
            kernel: Kernel::new(),
            locals: (0..config.cpus).map(|cpu| Local::new(CpuId(cpu as u16))).collect(),
            rng: Rng::new(seed),
            now: Cell::new(1),
            step: Cell::new(0),
            running: Cell::new(0),
            cpus,
            rows,
            tables: RefCell::new(Contents::new(manifest.services.len())),
            adopted: RefCell::default(),
            owner: RefCell::new(Owners::new(config.frames)),
            caches: RefCell::new(Caches::new(config.cpus, config.frames)),
            silicon: Silicon::new(config.cpus, config.sev_asids, config.faults),
            memory: RefCell::default(),
            spoiled: RefCell::default(),
            bytes: RefCell::default(),
            quarantined: Cell::new(0),
            acknowledged: Cell::new(false),
            unmapping: RefCell::default(),
            withheld: RefCell::default(),
            guests: RefCell::default(),
            lent: RefCell::default(),
            pages: RefCell::default(),
            calls: RefCell::default(),
            changes: RefCell::default(),
            open: RefCell::default(),
            ring: RefCell::new(vec![0; PAGE_SIZE as usize / 8]),
            lives: Lives::new(manifest.services.len()),
            kill: Cell::new(None),
            taken: Cell::new(0),
            takings: Cell::new(0),
            filled: RefCell::default(),
            breaking: RefCell::default(),
            broken: RefCell::default(),
            boundaries: Cell::new(0),
            mortal: Cell::new(MORTAL),
            crash: Cell::new(None),
            unflushed: Cell::new((usize::MAX, 0)),
            doomed: Cell::new(None),
            resets: Cell::new(config.resets),
            deaf: Cell::new(config.deaf),
            deaths: Cell::new(config.deaths),
            given_up: Cell::new(false),
            settled: Cell::new(false),
            over: Cell::new(None),
            stopping: Cell::new(false),
            history: RefCell::default(),
            failure: RefCell::default(),
            answered: Cell::new(0),
            exits: Cell::new(0),
            ends: Cell::default(),
            manifest,
        })
    }

    /// Deaths still to be injected, now that enough has happened for them.
    pub fn deaths_left(&self) -> u32 {
        if self.history.borrow().events() < self.config.peace { 0 } else { self.deaths.get() }
    }

    /// Whether this rule is broken.
    pub fn breaks(&self, mutant: Mutant) -> bool {
        self.config.mutant == Some(mutant)
    }

    /// Notes what happened on a CPU.
    pub fn note(&self, cpu: usize, what: What) {
        self.history.borrow_mut().note(self.step.get(), self.now.get(), cpu, what);
    }

    /// A rule was broken. The first time counts.
    pub fn fail(&self, what: impl FnOnce() -> String) {
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() && !self.stopping.get() {
            *failure = Some(what());
        }
    }

    /// As [`fail`](Self::fail), unless it holds.
    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what);
        }
    }

    /// Sends an IPI.
    pub fn send(&self, cpu: usize, kind: u8) {
        if let Some(cpu) = self.cpus.get(cpu) {
            cpu.send(kind);
        }
    }

    /// A device interrupts some CPU, to ring a service.
    pub fn interrupt(&self, slot: usize, bits: u64) {
        if let Some(cpu) = self.cpus.get(self.rng.below(self.cpus.len() as u64) as usize) {
            cpu.interrupt(slot, bits);
        }
    }

    /// A device of a service's tells it something.
    pub fn knock(&self, slot: usize) {
        self.interrupt(slot, doorbell::INTERRUPT);
    }

    /// Whether a CPU would take an interrupt now.
    pub fn interrupted(&self, cpu: usize) -> bool {
        self.cpus.get(cpu).is_some_and(|cpu| cpu.interrupted(self.now.get()))
    }

    /// Fulfils what others wish of a CPU's translations.
    pub fn answer_wishes(&self, cpu: usize) {
        let Some(cpu) = self.cpus.get(cpu) else { return };
        let (wished, done) = cpu.wishes.get();
        if wished != done {
            cpu.tlb.borrow_mut().clear();
            cpu.wishes.set((wished, wished));
        }
    }

    /// What a frame is, unless the table is being changed.
    pub fn frame(&self, frame: Frame) -> Option<Frames> {
        self.kernel.inspect(|tables| tables.frames.get(frame, &tables.batches)).flatten()
    }

    /// The window of a service onto its guest.
    pub fn window(slot: usize) -> Tree {
        Tree { root: Frame(SPACES + slot as u64), levels: 3 }
    }

    /// Page of a gfn in its handler's window.
    pub fn in_window(gfn: u64) -> u64 {
        layout::GUEST / PAGE_SIZE + gfn
    }

    /// What a gfn is mapped to in a nested tree.
    pub fn nested(&self, root: Frame, gfn: u64) -> Option<Mapping> {
        look_up(&View(self), Tree::nested(root), Gfn(gfn))
    }

    /// By the RMP the host may write a frame.
    pub fn check_host(&self, frame: u64, what: &str) {
        let entry = self.silicon.registers.rmp.0.get(Frame(frame)).unwrap_or_default();
        self.check(!entry.has(ASSIGNED), || format!("frame {frame:#x} {what}, and by the RMP it is {entry:x?}"));
    }

    /// The VM of a vCPU's context, if it has one.
    pub fn vm_of(&self, context: Context) -> Option<VmId> {
        let Kind::Vcpu(slot, _) = context.kind() else { return None };
        self.kernel.vms.get(slot).filter(|vm| vm.state().is_some()).map(|vm| vm.id.get())
    }
}
