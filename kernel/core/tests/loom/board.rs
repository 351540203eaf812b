//! A machine of two CPUs with caches, and one encrypted VM on it, under the real kernel.
//!
//! What only the model knows, it reads and writes by relaxed read-modify-write operations: they see the latest value and
//! order nothing, so they can't hide an order that the kernel lacks.

use std::cell::RefCell;
use std::sync::Arc;

use caisson_core::context::{Context, Phase};
use caisson_core::cpu::{Local, UserFrame};
use caisson_core::event::Event;
use caisson_core::frames::{FrameTable, Frames};
use caisson_core::here::Here;
use caisson_core::ipc::Next;
use caisson_core::kernel::{Kernel, Tables};
use caisson_core::machine::{Machine, Mailbox, Mapping, Removed, TablePool};
use caisson_core::schedule::Choice;
use caisson_core::vms::Books;
use caisson_proto::abi::{KERNEL_SLOT, Lease, Status, Syscall};
use caisson_proto::addr::{CpuId, Frame, Gfn, ServiceId, Spa, VmId};
use caisson_proto::bundle::ServiceRecord;
use caisson_proto::kernel::{Access, Caps, Features, FrameState, VmKind};
use caisson_proto::rmp::Entry;
use caisson_proto::vcpu::{Exit, Groups, Resume};
use caisson_proto::wire::{Field, Reply, Request};
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zerocopy::FromZeros;

use super::common::without_the_rest;

/// Services.
pub const MEMORY: usize = 0;
pub const NOTIFIER: usize = 1;
pub const FIRMWARE: usize = 2;
/// The VM, and its vCPU, which is at home on CPU 1.
pub const VM: VmId = VmId::new(0, 0);
pub const VCPU: Context = Context::vcpu(0, 0);
/// Its ASID.
pub const ASID: u32 = 3;
/// Its first frame; the guest frames from 0 on lie there.
pub const FIRST: u64 = 8;
/// Its pages.
pub const PAGES: u64 = 2;
/// Frames of the machine.
const FRAMES: usize = 16;

thread_local! {
    /// The frame table's entries: one for all executions, which come one after the other.
    static ENTRIES: &'static [std::sync::atomic::AtomicU64] =
        (0..FRAMES).map(|_| std::sync::atomic::AtomicU64::new(0)).collect::<Vec<_>>().leak();
}

/// What the kernel runs on.
pub struct Board {
    /// Pages of the VM of which a CPU has a dirty line, a bit each.
    pub dirty: [AtomicU64; 2],
    /// Pages that the nested table maps.
    mapped: AtomicU64,
    /// Pages that CPU 1 has translations of.
    known: AtomicU64,
    /// Not 0: this CPU may have lines of the ASID that was given up, and owes a WBINVD that begins after that.
    pub stale: [AtomicU64; 2],
    /// Interrupts, and what somebody waits for who waits for a batch.
    interrupts: [Notify; 2],
    pub paid: Notify,
}

/// Everything.
pub struct World {
    pub kernel: Kernel,
    pub board: Board,
}

/// The machine as a CPU sees it.
#[derive(Clone, Copy)]
pub struct On<'a> {
    board: &'a Board,
    cpu: usize,
}

/// A CPU.
pub struct Cpu {
    pub world: Arc<World>,
    pub number: usize,
    local: Local,
    frame: RefCell<UserFrame>,
}

/// Explores a model. Everything happens on threads with room for a kernel.
pub fn explore(model: impl Fn(Arc<World>) + Copy + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // A third one takes a minute and finds nothing more in what is broken on purpose.
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    builder.check(move || {
        spawn(move || model(World::new())).join().unwrap();
    });
}

/// A thread, as `explore` says.
pub fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(1 << 21).spawn(run).unwrap()
}

impl World {
    /// A VM whose vCPU is about to run, with pages that are all its own.
    fn new() -> Arc<Self> {
        let zero = || [0, 0].map(AtomicU64::new);
        let mapped = AtomicU64::new((1 << PAGES) - 1);
        let interrupts = [(); 2].map(|()| Notify::new());
        let board =
            Board { dirty: zero(), mapped, known: AtomicU64::new(0), stale: zero(), interrupts, paid: Notify::new() };
        let world = Arc::new(Self { kernel: Kernel::new(), board });
        let kernel = &world.kernel;
        let record = |caps: Caps| ServiceRecord { caps: caps.bits(), budget_ms: 1, ..ServiceRecord::new_zeroed() };
        let entries = ENTRIES.with(|entries| *entries);
        entries.iter().for_each(|entry| entry.store(0, Relaxed));
        let table = FrameTable::new(entries);
        table.declare(Frame(FIRST), PAGES, Frames::of(FrameState::Owned, VM));
        kernel.configure([Caps::FRAMES, Caps::WRITEBACK, Caps::FIRMWARE].map(record).iter(), 2, table);
        kernel.vms[0].begin(0, ServiceId::default(), Frame(1));
        kernel.vms[0].vcpus.store(1, Relaxed);
        kernel.context(VCPU).home.store(1, Relaxed);
        kernel.context(VCPU).phase.swap(Phase::Running);
        world.tables(|tables| {
            let mut books = Books { kind: VmKind::Sev, asid: ASID, pages: PAGES, ..Books::new() };
            (2..4).for_each(|frame| books.stock.give_back(Frame(frame)));
            tables.books[0] = books;
            tables.asids.bind(ASID, VM, VmKind::Sev).unwrap();
        });
        world
    }

    /// Under the table lock.
    pub fn tables<R>(&self, look: impl FnOnce(&mut Tables) -> R) -> R {
        self.kernel.inspect(look).unwrap()
    }

    /// Whether a page of the VM's is a free frame now.
    pub fn is_free(&self, page: u64) -> bool {
        let frame = self.tables(|tables| tables.frames.get(Frame(FIRST + page), &tables.batches));
        frame.unwrap().state == FrameState::Free
    }

    /// Says that an interrupt or a batch has come, to all who wait.
    pub fn wake_all(&self) {
        self.board.interrupts.iter().for_each(Notify::notify);
        self.board.paid.notify();
    }
}

impl Cpu {
    pub fn new(world: &Arc<World>, number: usize) -> Self {
        let (local, frame) = (Local::new(CpuId(number as u16)), RefCell::new(UserFrame::default()));
        Self { world: world.clone(), number, local, frame }
    }

    pub fn here(&self) -> Here<'_, On<'_>> {
        let machine = On { board: &self.world.board, cpu: self.number };
        Here { kernel: &self.world.kernel, local: &self.local, machine }
    }

    /// Waits for an interrupt.
    pub fn halt(&self) {
        self.world.board.interrupts[self.number].wait();
    }

    /// Enters the guest unless something is pending. In there it writes to each page that it finds mapped, or has found before
    /// and not flushed since.
    pub fn guest(&self) {
        if self.here().entering(VCPU) {
            let board = &self.world.board;
            let found = board.mapped.fetch_or(0, Relaxed);
            let found = board.known.fetch_or(found, Relaxed) | found;
            board.dirty[self.number].fetch_or(found, Relaxed);
            self.here().context(VCPU).leave();
        }
    }

    /// A kernel operation of a service.
    pub fn ask<R: Request>(&self, slot: usize, request: &R) -> Result<R::Reply, Status> {
        self.local.service.set(slot as u16);
        let rax = Syscall::Call as u64 | u64::from(KERNEL_SLOT) << 16;
        assert_eq!(self.syscall(rax, request.encode()), Next::User);
        let frame = self.frame.borrow();
        match Status::from_word(frame.rax & 0xffff).unwrap() {
            Status::Ok => Ok(R::Reply::decode(&frame.words).unwrap()),
            status => Err(status),
        }
    }

    fn syscall(&self, rax: u64, words: [u64; 8]) -> Next {
        let mut frame = UserFrame { rax, words, ..UserFrame::default() };
        let next = self.here().syscall(&mut frame);
        *self.frame.borrow_mut() = frame;
        next
    }

    /// Runs what is ready here until nothing is. `serve` is told who was called and what rang.
    pub fn run(&self, serve: impl Fn(usize, u64)) {
        loop {
            let mut frame = UserFrame::default();
            match self.here().pick(&mut frame) {
                Choice::User => {
                    let slot = self.local.service.get();
                    serve(slot.into(), frame.words[0]);
                    self.local.service.set(slot);
                    assert_eq!(self.syscall(Syscall::Reply as u64, [0; 8]), Next::Pick);
                }
                Choice::Idle => return,
                Choice::Guest(_) => panic!("no vCPU is scheduled here"),
            }
        }
    }
}

impl Machine for On<'_> {
    without_the_rest!();

    fn vcpu_flush(&self, _: Context) {
        self.board.known.swap(0, Relaxed);
    }

    fn asids(&self) -> (u32, u32) {
        (8, ASID << 16 | ASID)
    }
    fn interrupt_cpu(&self, cpu: CpuId) {
        self.board.interrupts[usize::from(cpu.0)].notify();
    }
    fn relax(&self) {
        loom::thread::yield_now();
    }
    fn log(&self, event: Event) {
        if matches!(event, Event::BatchPaid(..)) {
            self.board.paid.notify();
        }
    }
    /// What is dirty or stale when it begins isn't any more when it ends.
    fn write_back(&self, invalidate: bool) {
        self.board.dirty[self.cpu].swap(0, Relaxed);
        let stale = &self.board.stale[self.cpu];
        if invalidate && stale.fetch_or(0, Relaxed) != 0 {
            stale.swap(0, Relaxed);
        }
    }
    fn flush_lines(&self, _: Frame, _: u64, _: u32) {}
    fn mailbox(&self) -> Option<&'static Mailbox> {
        None
    }
    fn nested_map(&self, _: Frame, _: Gfn, _: Frame, _: u64, _: Access, _: &mut dyn TablePool) -> Result<(), Status> {
        Ok(())
    }
    fn nested_unmap(&self, _: Frame, from: Gfn, end: Gfn, _: &mut dyn TablePool) -> Result<Option<Removed>, Status> {
        let mapped = |gfn: &u64| self.board.mapped.fetch_and(!(1 << gfn), Relaxed) >> gfn & 1 == 1;
        let found = (from.0..end.0.min(PAGES)).find(mapped);
        Ok(found.map(|gfn| Removed { gfn: Gfn(gfn), frame: Frame(FIRST + gfn), pages: 1 }))
    }
    fn nested_look_up(&self, _: Frame, _: Gfn) -> Option<Mapping> {
        None
    }
    fn nested_drop(&self, _: Frame, _: &mut dyn TablePool) {}
}
