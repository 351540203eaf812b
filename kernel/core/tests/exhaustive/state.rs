//! Frames and batches as a state: into the kernel and out of it.

use std::sync::atomic::Ordering::SeqCst;

use caisson_core::batches::MAX_BATCHES;
use caisson_core::frames::{FrameTable, Frames};
use caisson_core::machine::TablePool;
use caisson_core::vms::{Books, TABLES_PER_MAP};
use caisson_proto::addr::{BatchId, Frame, ServiceId, VmId};
use caisson_proto::kernel::{FrameState, VmKind};

use super::board::{
    AGE, Batch, Board, CPUS, FIRST, FRAMES, Mutant, PAGES, ROOT, SLOTS, Truth, VMS, put_batches, slot_of, take_batches,
};

pub const COUNTS: &str = "the counts don't add up";
pub const UNMAPPED: &str = "what is mapped isn't the VM's";

/// What is modelled.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    /// The kinds of the VMs.
    pub vms: &'static [VmKind],
    /// Pages of memory.
    pub pages: usize,
    /// Whether all batches but one are somebody else's, for ever.
    pub full: bool,
    /// Whether pages are taken in events, too.
    pub events: bool,
    pub mutant: Option<Mutant>,
}

/// What a page is, by the frame table.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Is {
    Free {
        clean: bool,
    },
    /// Free since the batch of this slot was paid that was open there so many generations ago.
    Paid {
        slot: u8,
        age: u8,
    },
    Owned(u8),
    Private(u8),
    Waits(u8),
}

/// A page, and what is true of it.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Page {
    pub is: Is,
    pub dirty: [bool; CPUS],
    pub plain: bool,
    pub waits: Option<u8>,
}

/// Everything that the kernel's tables hold, and what is true.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    /// In order: pages are alike, so which is which doesn't matter.
    pub pages: [Page; PAGES],
    pub batches: [Option<Batch>; SLOTS],
    /// Batches with an open ticket.
    pub asked: Vec<u8>,
    pub rows: [u64; CPUS],
    pub wanted: [bool; CPUS],
    pub ran: [u8; CPUS],
    pub owed: [Option<u8>; SLOTS],
    pub held: [bool; SLOTS],
    pub freed: bool,
    pub fault: Option<&'static str>,
}

impl Small {
    pub fn blocked(&self) -> usize {
        if self.full { MAX_BATCHES - 1 } else { 0 }
    }

    pub fn encrypted(&self, vm: usize) -> bool {
        self.vms[vm] != VmKind::Plain
    }

    /// The batch that was open in a slot so many generations ago.
    pub fn batch(&self, slot: usize, age: u32) -> BatchId {
        BatchId((self.blocked() + slot) as u32 | (AGE - age) << 16)
    }

    /// Puts a state into the kernel.
    pub fn put(&self, state: &State) -> &'static Board {
        let board = Board::get();
        board.mutant.set(self.mutant);
        board.fault.set(None);
        board.entries.iter().for_each(|entry| entry.store(0, SeqCst));
        let table = FrameTable::new(board.entries);
        table.declare(Frame(0), FRAMES as u64, Frames::plain(FrameState::Kernel));
        let mut truth =
            Truth { ran: state.ran, owed: state.owed, held: state.held, freed: state.freed, ..Truth::default() };
        let mut nested = [[false; PAGES]; VMS];
        let mut mapped = [0; VMS];
        for (n, page) in state.pages.iter().enumerate() {
            let frame = Frame(FIRST + n as u64);
            let mut of = |state, vm: u8| {
                nested[usize::from(vm)][n] = true;
                mapped[usize::from(vm)] += 1;
                Frames::of(state, VmId::new(vm.into(), 0))
            };
            let is = match page.is {
                Is::Free { clean } => Frames::free(clean),
                Is::Paid { slot, .. } if self.mutant == Some(Mutant::SameId) => {
                    Frames::quarantined(self.batch(slot.into(), 0))
                }
                Is::Paid { slot, age } => Frames::quarantined(self.batch(slot.into(), age.into())),
                Is::Owned(vm) => of(FrameState::Owned, vm),
                Is::Private(vm) => of(FrameState::Private, vm),
                Is::Waits(slot) => Frames::quarantined(self.batch(slot.into(), 0)),
            };
            table.turn(frame, 1, FrameState::Kernel, is);
            table.paid(u64::from(matches!(page.is, Is::Paid { .. })));
            (0..CPUS).for_each(|cpu| truth.dirty[cpu] |= u8::from(page.dirty[cpu]) << n);
            truth.plain |= u8::from(page.plain) << n;
            truth.waits[n] = page.waits;
        }
        *board.truth.borrow_mut() = truth;
        *board.nested.borrow_mut() = nested;
        board.tables(|tables| {
            tables.frames = table;
            tables.batches = put_batches(self.blocked(), &state.batches);
            tables.tickets = state.asked.len() as u64;
            tables.open_tickets.clear();
            for (ticket, slot) in (1..).zip(&state.asked) {
                tables.open_tickets.push((ticket, self.batch((*slot).into(), 0))).unwrap();
            }
            for (slot, kind) in self.vms.iter().enumerate() {
                let mut books = Books { kind: *kind, pages: mapped[slot], ..Books::new() };
                (0..TABLES_PER_MAP as u64).for_each(|n| books.stock.give_back(Frame(100 + n)));
                tables.books[slot] = books;
            }
        });
        for slot in 0..self.vms.len() {
            board.kernel.vms[slot].begin(slot, ServiceId::default(), Frame(ROOT + slot as u64));
            board.kernel.vms[slot].vcpus.store((1 << CPUS) - 1, SeqCst);
        }
        for (cpu, shared) in board.kernel.cpus.iter().enumerate().take(CPUS) {
            shared.ran.store(state.rows[cpu], SeqCst);
            shared.flush_wanted.set(state.wanted[cpu]);
            shared.invalidate_wanted.set(false);
        }
        board
    }

    /// Takes the state out of the kernel, which is spoilt by it.
    pub fn take(&self, board: &Board) -> State {
        let truth = board.truth.borrow().clone();
        let mut fault = board.fault.get();
        let nested = *board.nested.borrow();
        let (pages, batches, asked) = board.tables(|tables| {
            let of = |frame: u64| tables.frames.get(Frame(frame), &tables.batches).unwrap();
            let found: Vec<Frames> = (0..FRAMES as u64).map(of).collect();
            let count = |state: &FrameState| found.iter().filter(|frame| frame.state == *state).count() as u64;
            if !FrameState::ALL.iter().map(count).eq(tables.frames.counts()) {
                fault = Some(COUNTS);
            }
            let asked = tables.open_tickets.iter().map(|(_, id)| slot_of(self.blocked(), *id) as u8).collect();
            let (batches, generations) = take_batches(self.blocked(), &mut tables.batches);
            let page = |n: usize| {
                let frame = found[FIRST as usize + n];
                let (state, batch) = raw(board.entries[FIRST as usize + n].load(SeqCst));
                let vm = frame.vm().map_or(0, |vm| vm.index() as u8);
                let slot = || slot_of(self.blocked(), batch);
                let is = match frame.state {
                    FrameState::Owned => Is::Owned(vm),
                    FrameState::Private => Is::Private(vm),
                    FrameState::Quarantined => Is::Waits(slot() as u8),
                    _ if state == FrameState::Quarantined => {
                        let age = (generations[slot()] - (batch.0 >> 16)).min(AGE) as u8;
                        Is::Paid { slot: slot() as u8, age }
                    }
                    _ => Is::Free { clean: frame == Frames::free(true) },
                };
                let dirty = truth.dirty.map(|dirty| dirty >> n & 1 == 1);
                Page { is, dirty, plain: truth.plain >> n & 1 == 1, waits: truth.waits[n] }
            };
            let pages: [Page; PAGES] = std::array::from_fn(page);
            (pages, batches, asked)
        });
        for (n, page) in pages.iter().enumerate() {
            let owner = match page.is {
                Is::Owned(vm) | Is::Private(vm) => Some(usize::from(vm)),
                _ => None,
            };
            if (0..nested.len()).any(|vm| nested[vm][n] != (owner == Some(vm))) {
                fault = Some(UNMAPPED);
            }
        }
        let mut pages = pages;
        pages[..self.pages].sort_unstable();
        let mut asked: Vec<u8> = asked;
        asked.sort_unstable();
        // A second ticket is done when the first is.
        asked.dedup();
        let shared = |cpu: usize| &board.kernel.cpus[cpu];
        State {
            pages,
            batches,
            asked,
            rows: std::array::from_fn(|cpu| shared(cpu).ran.load(SeqCst)),
            wanted: std::array::from_fn(|cpu| shared(cpu).flush_wanted.get()),
            ran: truth.ran,
            owed: truth.owed,
            held: truth.held,
            freed: truth.freed,
            fault,
        }
    }
}

/// An entry of the frame table as it lies in memory, whether its batch is paid or not.
fn raw(entry: u64) -> (FrameState, BatchId) {
    let state = FrameState::ALL.iter().find(|state| **state as u64 == (entry & 7) ^ FrameState::Leaked as u64);
    (*state.unwrap(), BatchId((entry >> 32) as u32))
}
