//! A machine of two CPUs with caches under the real kernel, and what is true of it, whatever the kernel believes.
//!
//! One a thread. A model puts a state into the kernel's tables, lets the kernel do one thing, and takes the state out.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use caisson_core::batches::{Batches, MAX_BATCHES, Payable};
use caisson_core::cpu::{Local, UserFrame};
use caisson_core::cpus::CpuSet;
use caisson_core::frames::FrameTable;
use caisson_core::here::Here;
use caisson_core::ipc::Next;
use caisson_core::kernel::{Kernel, Tables};
use caisson_core::machine::Mailbox;
use caisson_core::rmp::Rmp;
use caisson_proto::abi::{KERNEL_SLOT, Lease, Status, Syscall};
use caisson_proto::addr::{BatchId, CpuId, Frame, VPage, VmId};
use caisson_proto::bundle::ServiceRecord;
use caisson_proto::kernel::{Caps, VmKind};
use caisson_proto::wire::{Field, Reply, Request};
use zerocopy::FromZeros;

pub const CPUS: usize = 2;
/// Pages of memory that VMs share out, from this frame on; page n is guest frame n wherever it is mapped.
pub const PAGES: usize = 3;
pub const FIRST: u64 = 8;
/// VMs at the most, and the root of the first.
pub const VMS: usize = 3;
pub const ROOT: u64 = 4;
/// Frames of the machine.
pub const FRAMES: usize = FIRST as usize + PAGES;
/// Batches at the most.
pub const SLOTS: usize = 3;
/// ASIDs, from 1 on.
pub const ASIDS: usize = 2;
/// Services.
pub const MEMORY: usize = 0;
pub const NOTIFIER: usize = 1;
pub const FIRMWARE: usize = 2;
pub const VMM: usize = 3;

/// A rule of the machine or the kernel that is broken, for a model that must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A CPU enters a guest and its row doesn't say so.
    ForgetRow,
    /// A flush clears the rows of all CPUs.
    ClearAllRows,
    /// A flush executes nothing.
    SkipExecution,
    /// Whoever asks pays for those that it asks.
    PayWhenAsked,
    /// A batch forgets the debt of a CPU when frames join.
    LoseDebt,
    /// A batch owes a CPU that isn't there.
    OweForEver,
    /// A paid frame is counted twice.
    CountTwice,
    /// A batch that is opened again in the same slot has the same id.
    SameId,
    /// Turning private forgets the host's lines.
    ForgetPlain,
    /// Nobody flushes when asked.
    NeverFlush,
    /// What an event took can be paid before its end.
    HeldIsPaid,
    /// Who owes for an event is sampled before its end.
    SampleEarly,
    /// An event has no end.
    NeverEnd,
    /// WBNOINVD where WBINVD is asked for.
    TooWeak,
    /// One CPU's WBINVD is enough.
    OneCpu,
    /// Flushed is as good as free.
    SkipDfFlush,
    /// A DF_FLUSH counts for what was flushed after it was rung.
    EarlyDfFlush,
    /// What is deactivated while WBINVD is under way counts as flushed by it.
    LateDeactivation,
    /// A VM that goes leaves its ASID free.
    FreeAtRelease,
    /// A guest that the firmware won't forget is forgotten.
    ReuseLeaked,
    /// Nothing is ever recycled.
    NeverRecycle,
}

/// What is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truth {
    /// Pages with a dirty line of a guest's in a CPU's cache, a bit each.
    pub dirty: [u8; CPUS],
    /// Pages with a dirty line of the host's in some cache.
    pub plain: u8,
    /// VMs that a CPU ran since it wrote back last.
    pub ran: [u8; CPUS],
    /// Open batches with frames, and the CPUs that have yet to write back for them.
    pub owed: [Option<u8>; SLOTS],
    /// Those whose event goes on.
    pub held: [bool; SLOTS],
    /// The batch that a page waits for.
    pub waits: [Option<u8>; PAGES],
    /// CPUs that haven't begun and ended WBINVD since an ASID was given up.
    pub stale: [u8; ASIDS],
    /// Whether the firmware has yet to accept DF_FLUSH after that.
    pub unflushed: [bool; ASIDS],
    /// Those for which the DF_FLUSH counts that the processor has.
    pub flushing: [bool; ASIDS],
    /// ASIDs that are bound, and those that are active.
    pub bound: [bool; ASIDS],
    pub active: [bool; ASIDS],
    /// ASIDs whose guest the firmware knows.
    pub known: [bool; ASIDS],
    /// Whether frames came free for which somebody had owed.
    pub freed: bool,
}

impl Truth {
    /// Nothing of an ASID's lines is in a cache, and the firmware knows it.
    pub fn is_clean(&self, asid: usize) -> bool {
        self.stale[asid] == 0 && !self.unflushed[asid]
    }

    /// Nobody has an ASID any more.
    pub fn give_up(&mut self, asid: usize) {
        (self.bound[asid], self.active[asid]) = (false, false);
        (self.stale[asid], self.unflushed[asid]) = ((1 << CPUS) - 1, true);
    }

    /// A batch is paid, by the last who owed or because nobody did.
    pub fn close(&mut self, slot: usize, owed: bool) {
        (self.owed[slot], self.held[slot]) = (None, false);
        for waits in &mut self.waits {
            self.freed |= owed && *waits == Some(slot as u8);
            *waits = waits.filter(|of| usize::from(*of) != slot);
        }
    }
}

/// What another CPU does during a write-back.
type Meanwhile = Box<dyn FnOnce()>;

/// The machine, with its kernel.
pub struct Board {
    pub kernel: &'static Kernel,
    pub entries: &'static [AtomicU64],
    pub mailbox: &'static Mailbox,
    pub truth: RefCell<Truth>,
    /// Pages that each VM's nested table maps, by its root.
    pub nested: RefCell<[[bool; PAGES]; VMS]>,
    pub meanwhile: RefCell<Option<Meanwhile>>,
    pub mutant: Cell<Option<Mutant>>,
    /// Something that a state can't show.
    pub fault: Cell<Option<&'static str>>,
    locals: [Local; CPUS],
}

/// The machine as a CPU sees it.
#[derive(Clone, Copy)]
pub struct On {
    pub board: &'static Board,
    pub cpu: usize,
}

thread_local! {
    static BOARD: &'static Board = Board::new();
}

impl Board {
    /// This thread's.
    pub fn get() -> &'static Self {
        BOARD.with(|board| *board)
    }

    fn new() -> &'static Self {
        let kernel: &Kernel = Box::leak(Box::new(Kernel::new()));
        let record = |caps: Caps| ServiceRecord {
            caps: caps.bits(),
            budget_ms: 1,
            is_vmm: u32::from(caps == Caps::VCPUS),
            ..ServiceRecord::new_zeroed()
        };
        let caps = [Caps::FRAMES, Caps::WRITEBACK, Caps::FIRMWARE, Caps::VCPUS];
        kernel.configure(caps.map(record).iter(), CPUS, FrameTable::new(&[]));
        kernel.service(VMM).revive(0, 0);
        let registers = [(); 3].map(|()| &*Box::leak(Box::new(AtomicU32::new(1 << 31))));
        let command = [(); 2].map(|()| &*Box::leak(Box::new([const { AtomicU64::new(0) }; 8])));
        let rmp = (Rmp(&[]), Frame(0));
        Box::leak(Box::new(Self {
            kernel,
            entries: (0..FRAMES).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak(),
            mailbox: Box::leak(Box::new(Mailbox { registers, command, first: Frame(0), rmp })),
            truth: RefCell::default(),
            nested: RefCell::default(),
            meanwhile: RefCell::default(),
            mutant: Cell::new(None),
            fault: Cell::new(None),
            locals: [0, 1].map(|cpu| Local::new(CpuId(cpu))),
        }))
    }

    pub fn tables<R>(&self, look: impl FnOnce(&mut Tables) -> R) -> R {
        self.kernel.inspect(look).unwrap()
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant.get() == Some(mutant)
    }

    pub fn here(&'static self, cpu: usize) -> Here<'static, On> {
        Here { kernel: self.kernel, local: &self.locals[cpu], machine: On { board: self, cpu } }
    }

    /// A kernel operation of a service on a CPU.
    pub fn ask<R: Request>(&'static self, cpu: usize, service: usize, request: &R) -> Result<R::Reply, Status> {
        self.locals[cpu].service.set(service as u16);
        let rax = Syscall::Call as u64 | u64::from(KERNEL_SLOT) << 16;
        let rbx = Lease { page: VPage(0x400), pages: 1, write: true }.to_word();
        let mut frame = UserFrame { rax, rbx, words: request.encode(), ..UserFrame::default() };
        assert_eq!(self.here(cpu).syscall(&mut frame), Next::User);
        match Status::from_word(frame.rax & 0xffff).unwrap() {
            Status::Ok => Ok(R::Reply::decode(&frame.words).unwrap()),
            status => Err(status),
        }
    }

    /// A CPU does what others want flushed. `meanwhile`: another one, in the middle of that.
    pub fn flush(&'static self, cpu: usize, meanwhile: Option<Meanwhile>) {
        if self.is(Mutant::NeverFlush) {
            self.kernel.cpus[cpu].flush_wanted.set(false);
        }
        *self.meanwhile.borrow_mut() = meanwhile;
        self.here(cpu).flush_if_wanted();
        self.meanwhile.take();
        if self.is(Mutant::ClearAllRows) {
            self.kernel.cpus.iter().take(CPUS).for_each(|shared| shared.ran.store(0, SeqCst));
        }
    }
}

/// How often a slot of the table of batches was used: all that is older is alike.
pub const AGE: u32 = 2;

/// A batch as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    pub vm: u32,
    pub kind: u8,
    pub frames: u8,
    pub owed: u8,
    pub invalidate: bool,
    pub held: bool,
}

pub fn kind(number: u8) -> VmKind {
    VmKind::from_word(number.into()).unwrap()
}

pub fn cpus(bits: u8) -> CpuSet {
    CpuSet::of((0..8).filter(|cpu| bits >> cpu & 1 == 1).map(CpuId))
}

/// A VM that has nothing to do with it.
fn nobody(slot: usize) -> VmId {
    VmId::new(1000 + slot as u16, 0)
}

/// A table with these batches, each in its slot as the [`AGE`]th there, as the next one of a free slot is; the slots
/// before them hold batches that are never paid.
pub fn put_batches(blocked: usize, open: &[Option<Batch>; SLOTS]) -> Batches {
    let mut batches = Batches::new();
    for slot in 0..blocked {
        batches.open(nobody(slot), VmKind::SevSnp, &cpus(1 << 7), Payable::WriteBack).unwrap();
    }
    let (mut later, mut held_open) = (Vec::new(), Vec::new());
    for (slot, is) in (blocked..MAX_BATCHES).zip(open) {
        let placeholder = |batches: &mut Batches| {
            batches.open(nobody(slot), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack).unwrap()
        };
        let use_up = |batches: &mut Batches| {
            let id = placeholder(batches);
            batches.settle(id).unwrap();
        };
        let Some(Batch { vm, kind: of, frames, owed, invalidate, held }) = is else {
            // The last of them is closed when no slot before another is free any more.
            (1..AGE).for_each(|_| use_up(&mut batches));
            later.push(placeholder(&mut batches));
            continue;
        };
        let (vm, of) = (VmId::from_bits(*vm), kind(*of));
        if *held {
            // Opened when nothing else is to be, since another of the VM that is opened now would be the same.
            (1..AGE).for_each(|_| use_up(&mut batches));
            held_open.push((slot, placeholder(&mut batches), vm, of, *frames, *owed));
            continue;
        }
        (0..AGE).for_each(|_| use_up(&mut batches));
        let id = if *invalidate {
            batches.open(vm, of, &cpus(*owed), Payable::Invalidate).unwrap()
        } else {
            // As the end of an event leaves it, so that a VM may have several.
            let id = batches.open(vm, of, &cpus(*owed), Payable::Never).unwrap();
            batches.release(id, &CpuSet::EMPTY);
            id
        };
        assert_eq!(id.0, slot as u32 | AGE << 16, "not in its slot");
        batches.join(id, (*frames).into());
    }
    for (slot, placeholder, vm, of, frames, owed) in held_open {
        batches.settle(placeholder).unwrap();
        let id = batches.open(vm, of, &cpus(owed), Payable::Never).unwrap();
        assert_eq!(id.0, slot as u32 | AGE << 16, "not in its slot");
        batches.join(id, frames.into());
    }
    for id in later {
        batches.settle(id).unwrap();
    }
    batches
}

/// The batches in a table, and the generation that each slot has or will have next. Spoils the table.
pub fn take_batches(blocked: usize, batches: &mut Batches) -> ([Option<Batch>; SLOTS], [u32; SLOTS]) {
    let (mut open, mut generations) = ([const { None }; SLOTS], [0; SLOTS]);
    for (slot, at) in (blocked..MAX_BATCHES).zip(0..SLOTS) {
        let found = batches.get(slot).copied();
        let id = found.map_or_else(
            || batches.open(nobody(slot), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack).unwrap(),
            |open| open.id,
        );
        assert_eq!(id.0 & 0xffff, slot as u32);
        generations[at] = id.0 >> 16;
        open[at] = found.map(|open| Batch {
            vm: open.vm.bits(),
            kind: open.kind as u8,
            frames: open.frames as u8,
            owed: open.owed.iter().fold(0, |bits, cpu| bits | 1 << cpu.0),
            invalidate: open.payable == Payable::Invalidate,
            held: open.payable == Payable::Never,
        });
    }
    (open, generations)
}

/// The slot of a batch among those that are looked at.
pub fn slot_of(blocked: usize, id: BatchId) -> usize {
    (id.0 & 0xffff) as usize - blocked
}
