//! ASIDs as a state: into the kernel and out of it.

use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::SeqCst;

use caisson_core::asids::{Asid, Asids, MAX_ASIDS};
use caisson_core::frames::{FrameTable, Frames};
use caisson_core::vms::Books;
use caisson_proto::addr::{BatchId, Frame, VmId};
use caisson_proto::kernel::{AsidState, FrameState, MailboxReport, MailboxState, VmKind, VmState};
use caisson_proto::mailbox::DF_FLUSH;

use super::board::{
    AGE, ASIDS, Batch, Board, CPUS, FRAMES, Mutant, ROOT, SLOTS, Truth, VMM, kind, put_batches, take_batches,
};

/// VMs at once, at the most.
pub const AT_ONCE: usize = 2;
/// No VM.
pub const NOBODY: VmId = VmId::new(9, 0);

/// What is modelled.
#[derive(Clone, Copy, Debug)]
pub struct Recycling {
    /// VMs at once.
    pub vms: usize,
    /// Tickets at once.
    pub tickets: usize,
    /// Whether the platform is initialised and shut down.
    pub platform: bool,
    pub mutant: Option<Mutant>,
}

/// A slot for a VM.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Slot {
    pub state: Option<u8>,
    pub asid: u8,
}

/// An ASID in the kernel's table.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Row {
    pub state: u8,
    pub kind: u8,
    pub vm: VmId,
    pub handle: bool,
    pub since: u64,
}

/// Everything that the kernel's tables hold, and what is true. Numbers of tickets are the lowest in the same order.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    pub slots: [Slot; AT_ONCE],
    pub rows: [Row; ASIDS],
    pub mailbox: Option<(u16, VmId)>,
    pub batch: Option<Batch>,
    pub tickets: u64,
    /// Tickets that were given when the processor was rung, if that matters.
    pub rung: u64,
    pub open: Vec<u64>,
    pub wanted: [(bool, bool); CPUS],
    pub truth: Truth,
    /// An ASID came free in the last step.
    pub recycled: bool,
    pub fault: Option<&'static str>,
}

impl Recycling {
    pub fn put(&self, state: &State) -> &'static Board {
        let board = Board::get();
        board.mutant.set(self.mutant);
        board.fault.set(None);
        *board.truth.borrow_mut() = state.truth.clone();
        board.entries.iter().for_each(|entry| entry.store(0, SeqCst));
        let table = FrameTable::new(board.entries);
        table.declare(Frame(0), FRAMES as u64, Frames::plain(FrameState::Kernel));
        let handler = board.kernel.service(VMM).id.get();
        let mut books = Vec::new();
        for (n, slot) in state.slots.iter().enumerate() {
            let (vm, root) = (&board.kernel.vms[n], Frame(ROOT + n as u64));
            vm.id.set(VmId::new(n as u16, 0));
            let id = vm.begin(n, handler, root);
            let is = match slot.state {
                Some(state) => {
                    if state == VmState::Dying as u8 {
                        vm.dying();
                    }
                    Frames::of(FrameState::Kernel, id)
                }
                None => {
                    vm.end();
                    vm.id.set(id);
                    Frames::free(false)
                }
            };
            table.declare(root, 1, is);
            let kind = if slot.state.is_some() { VmKind::SevEs } else { VmKind::Plain };
            books.push(Books { kind, asid: slot.asid.into(), ..Books::new() });
        }
        board.tables(|tables| {
            tables.frames = table;
            let batches = std::array::from_fn(|slot| state.batch.clone().filter(|_| slot == 0));
            tables.batches = put_batches(0, &batches);
            for (slot, books) in books.into_iter().enumerate() {
                tables.books[slot] = books;
            }
            (tables.snp, tables.lent) = (false, 0);
            tables.tickets = state.tickets;
            tables.rung = if self.mutant == Some(Mutant::EarlyDfFlush) { u64::MAX } else { state.rung };
            tables.open_tickets = state.open.iter().map(|ticket| (*ticket, BatchId(AGE << 16))).collect();
            // INIT changes those that aren't modelled, too.
            if tables.asids.get(0).unwrap().state != AsidState::Free {
                (0..MAX_ASIDS as u32).for_each(|asid| *tables.asids.get(asid).unwrap() = free());
            }
            for (n, row) in state.rows.iter().enumerate() {
                let place = tables.asids.get(n as u32 + 1).unwrap();
                *place = free();
                if row.state != AsidState::Free as u8 {
                    place.deactivate(row.since);
                    place.state = AsidState::ALL[usize::from(row.state)];
                    (place.vm, place.kind) = (row.vm, kind(row.kind));
                    place.handle = if row.handle { 16 + n as u64 } else { 0 };
                }
            }
            let (state, command, vm) = match state.mailbox {
                Some((command, vm)) => (MailboxState::Busy, command, vm),
                None => (MailboxState::Idle, 0, NOBODY),
            };
            tables.mailbox = MailboxReport { state, command, status: 0, vm };
        });
        board.mailbox.command[0].iter().for_each(|word| word.store(0, SeqCst));
        board.mailbox.registers[0].store(0, SeqCst);
        for (cpu, shared) in board.kernel.cpus.iter().enumerate().take(CPUS) {
            shared.ran.store(0, SeqCst);
            shared.flush_wanted.set(state.wanted[cpu].0);
            shared.invalidate_wanted.set(state.wanted[cpu].1);
        }
        board
    }

    pub fn take(&self, board: &Board) -> State {
        let wanted = |cpu: usize| &board.kernel.cpus[cpu];
        let vms = &board.kernel.vms;
        let mut state = board.tables(|tables| State {
            slots: std::array::from_fn(|n| Slot {
                state: vms[n].state().map(|state| state as u8),
                asid: tables.books[n].asid as u8,
            }),
            rows: std::array::from_fn(|n| {
                let asid = *tables.asids.get(n as u32 + 1).unwrap();
                let of = |since: &u64| {
                    let mut other = asid;
                    other.deactivate(*since);
                    other.state = asid.state;
                    other == asid
                };
                let since = (0..=tables.tickets).find(of).unwrap();
                let Asid { state, kind, vm, handle, .. } = asid;
                let vm = if kind == VmKind::Plain { NOBODY } else { vm };
                Row { state: state as u8, kind: kind as u8, vm, handle: handle != 0, since }
            }),
            mailbox: (tables.mailbox.state == MailboxState::Busy)
                .then_some((tables.mailbox.command, tables.mailbox.vm)),
            batch: {
                let (batches, _) = take_batches(0, &mut tables.batches);
                assert!(batches[1..SLOTS].iter().all(Option::is_none));
                batches[0].clone()
            },
            tickets: tables.tickets,
            rung: tables.rung,
            open: tables.open_tickets.iter().map(|(ticket, _)| *ticket).collect(),
            wanted: std::array::from_fn(|cpu| (wanted(cpu).flush_wanted.get(), wanted(cpu).invalidate_wanted.get())),
            truth: board.truth.borrow().clone(),
            recycled: false,
            fault: board.fault.get(),
        });
        state.renumber();
        let lives = |vm: VmId| vms.iter().any(|of| of.state().is_some() && of.id.get() == vm);
        for n in 0..ASIDS {
            let (vm, gone) = (state.rows[n].vm, gone(n));
            if vm != NOBODY && !lives(vm) {
                state.rows[n].vm = gone;
                state.mailbox.iter_mut().filter(|(_, of)| *of == vm).for_each(|(_, of)| *of = gone);
            }
        }
        state
    }
}

/// The VM that had an ASID and is gone: which it was doesn't matter.
pub fn gone(asid: usize) -> VmId {
    VmId::new(20 + asid as u16, 0)
}

/// An ASID that is free.
pub fn free() -> Asid {
    thread_local!(static FREE: Asid = *Asids::new().get(0).unwrap());
    FREE.with(|asid| *asid)
}

impl State {
    /// Gives tickets the lowest numbers that are in the same order.
    fn renumber(&mut self) {
        let flushes = self.mailbox.is_some_and(|(command, _)| command == DF_FLUSH);
        let matters =
            |row: &&mut Row| row.state == AsidState::Dirty as u8 || flushes && row.state == AsidState::Flushed as u8;
        let mut seen: Vec<u64> = self.open.iter().copied().chain([self.tickets]).collect();
        seen.extend(flushes.then_some(self.rung));
        seen.extend(self.rows.iter_mut().filter(matters).map(|row| row.since));
        seen.sort_unstable();
        seen.dedup();
        // From 1 on: a ticket covers what has a lower number, and there may be such.
        let rank = |number: u64| seen.iter().position(|other| *other == number).map_or(0, |rank| 1 + rank as u64);
        self.tickets = rank(self.tickets);
        self.rung = if flushes { rank(self.rung) } else { 0 };
        self.open.iter_mut().for_each(|ticket| *ticket = rank(*ticket));
        for row in &mut self.rows {
            row.since = if matters(&row) { rank(row.since) } else { 0 };
        }
    }
}

impl State {
    /// ASIDs are alike, and so are slots: the one that stands for all that only differ in which is which.
    pub fn representative(self) -> Self {
        let hash = |state: &Self| {
            let mut hasher = std::hash::DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        let mirrored = self.clone().mirror_asids();
        let all = [self.clone().mirror_slots(), mirrored.clone().mirror_slots(), self, mirrored];
        all.into_iter().min_by_key(hash).unwrap()
    }

    fn mirror_asids(mut self) -> Self {
        self.rows.reverse();
        let vms = self.rows.iter_mut().map(|row| &mut row.vm).chain(self.mailbox.iter_mut().map(|(_, vm)| vm));
        for vm in vms {
            *vm = if *vm == gone(0) {
                gone(1)
            } else if *vm == gone(1) {
                gone(0)
            } else {
                *vm
            };
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.asid != 0) {
            slot.asid = 3 - slot.asid;
        }
        let truth = &mut self.truth;
        truth.stale.reverse();
        [&mut truth.unflushed, &mut truth.flushing, &mut truth.bound, &mut truth.active, &mut truth.known]
            .into_iter()
            .for_each(|set| set.reverse());
        self
    }

    fn mirror_slots(mut self) -> Self {
        self.slots.reverse();
        let vms = self.rows.iter_mut().map(|row| &mut row.vm).chain(self.mailbox.iter_mut().map(|(_, vm)| vm));
        for vm in vms.filter(|vm| vm.index() < AT_ONCE) {
            *vm = VmId::new(1 - vm.index() as u16, vm.generation());
        }
        self
    }
}
