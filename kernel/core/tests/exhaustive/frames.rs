//! Frames and batches: VMs that take pages, run on CPUs and give the pages back.

use std::sync::atomic::Ordering::SeqCst;

use caisson_core::batches::Payable;
use caisson_core::context::Context;
use caisson_proto::addr::{BatchId, Frame, Gfn, Sequence, VmId};
use caisson_proto::kernel::{Access, GuestConvert, GuestMap, GuestUnmap, VmKind, WriteBack};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::board::{Batch, Board, CPUS, FIRST, MEMORY, Mutant, NOTIFIER, PAGES, SLOTS, cpus, slot_of};
use super::common::pay;
use super::machine::REUSED;
use super::state::{COUNTS, Is, Page, Small, State, UNMAPPED};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// memory gives a VM a page.
    Map { vm: usize, page: usize },
    /// The host writes to a page of a VM.
    HostWrites { page: usize },
    /// A page becomes private.
    Private { vm: usize, page: usize },
    /// A vCPU enters its guest, writes to all of its pages and leaves.
    Run { vm: usize, cpu: usize },
    /// memory takes a page back.
    Unmap { vm: usize, page: usize, cpu: usize },
    /// The same in an event, which goes on.
    UnmapMore { vm: usize, page: usize },
    /// Its end.
    End { vm: usize, cpu: usize },
    /// notifier asks for a batch.
    WriteBack { slot: usize, cpu: usize },
    /// A CPU does what it is asked to.
    Flush { cpu: usize },
    /// And the other one does something while this one writes back.
    FlushWhile { cpu: usize, unmaps: (usize, usize), asks: bool },
}

impl Small {
    fn unmap(&self, board: &'static Board, vm: usize, page: usize, cpu: usize) -> BatchId {
        let request = GuestUnmap {
            vm: VmId::new(vm as u16, 0),
            view: 0,
            gfn: Gfn(page as u64),
            pages: 1,
            more: false,
            broken: false,
        };
        let batch = board.ask(cpu, MEMORY, &request).unwrap().batch;
        let slot = slot_of(self.blocked(), batch);
        let mut truth = board.truth.borrow_mut();
        let ran = (0..CPUS).filter(|cpu| self.encrypted(vm) && truth.ran[*cpu] >> vm & 1 == 1);
        let owed = ran.fold(0, |owed, cpu| owed | 1 << cpu);
        truth.owed[slot] = Some(truth.owed[slot].unwrap_or(0) | owed);
        // It is the end of the VM's event, if there is one.
        truth.held[slot] = false;
        truth.waits[page] = Some(slot as u8);
        truth.plain &= !(1 << page);
        drop(truth);
        match board.mutant.get() {
            // As if it had written back by itself.
            Some(Mutant::LoseDebt) => pay_for(board, 1),
            Some(Mutant::OweForEver) => board.tables(|tables| {
                let of = VmId::new(vm as u16, 0);
                let _ = tables.batches.open(of, self.vms[vm], &cpus(1 << 5), Payable::WriteBack);
            }),
            _ => {}
        }
        batch
    }

    fn write_back(&self, board: &'static Board, batch: BatchId, cpu: usize) {
        let slot = slot_of(self.blocked(), batch);
        let asked = board.ask(cpu, NOTIFIER, &WriteBack { batch });
        // Until an event ends nobody can ask for what it took.
        let held = board.truth.borrow().held[slot];
        assert!(asked.is_err() == held || board.mutant.get().is_some(), "{asked:?}");
        if asked.is_err() {
            return;
        }
        if board.is(Mutant::PayWhenAsked) {
            (0..CPUS).for_each(|cpu| pay_for(board, cpu));
        }
        let mut truth = board.truth.borrow_mut();
        if truth.owed[slot] == Some(0) && !truth.held[slot] {
            truth.close(slot, false);
        }
    }

    fn step(&self, board: &'static Board, action: Action) {
        let id = |vm: usize| VmId::new(vm as u16, 0);
        match action {
            Action::Map { vm, page } => {
                let (gfn, frame) = (Gfn(page as u64), Frame(FIRST + page as u64));
                let (access, sequence) = (Access::all(), Sequence(0));
                // Whether it is right to refuse it, or not to, the properties know.
                let _ = board.ask(0, MEMORY, &GuestMap { vm: id(vm), view: 0, gfn, frame, pages: 1, access, sequence });
            }
            Action::HostWrites { page } => board.truth.borrow_mut().plain |= 1 << page,
            Action::Private { vm, page } => {
                let gfn = Gfn(page as u64);
                board.ask(0, MEMORY, &GuestConvert { vm: id(vm), gfn, pages: 1, private: true, large: false }).unwrap();
            }
            Action::Run { vm, cpu } => {
                let vcpu = Context::vcpu(vm, cpu);
                assert!(board.here(cpu).entering(vcpu));
                let mut truth = board.truth.borrow_mut();
                truth.ran[cpu] |= 1 << vm;
                let nested = board.nested.borrow()[vm];
                // Until an event ends, what it took is reached by translations.
                let (held, waits) = (self.event(board, vm), truth.waits);
                let of = |page: usize| nested[page] || held.is_some() && waits[page] == held;
                for page in (0..PAGES).filter(|page| self.encrypted(vm) && of(*page)) {
                    truth.dirty[cpu] |= 1 << page;
                }
                board.here(cpu).context(vcpu).leave();
                if board.is(Mutant::ForgetRow) {
                    board.kernel.cpus[cpu].ran.store(0, SeqCst);
                }
            }
            Action::Unmap { vm, page, cpu } => drop(self.unmap(board, vm, page, cpu)),
            Action::UnmapMore { vm, page } => self.unmap_more(board, vm, page),
            Action::End { vm, cpu } => self.end(board, vm, cpu),
            Action::WriteBack { slot, cpu } => {
                self.write_back(board, self.batch(slot, 0), cpu);
            }
            Action::Flush { cpu } => board.flush(cpu, None),
            Action::FlushWhile { cpu, unmaps: (vm, page), asks } => {
                let small = *self;
                let other = move || {
                    let batch = small.unmap(board, vm, page, 1 - cpu);
                    if asks {
                        small.write_back(board, batch, 1 - cpu);
                    }
                };
                board.flush(cpu, Some(Box::new(other)));
            }
        }
        if board.is(Mutant::CountTwice) && matches!(action, Action::Flush { .. }) {
            board.tables(|tables| tables.frames.paid(1));
        }
    }

    /// Whether asking for every batch and letting all CPUs flush leaves nothing waiting.
    fn drains(&self, state: &State) -> bool {
        let board = self.put(state);
        (0..self.vms.len()).for_each(|vm| self.end(board, vm, 0));
        for slot in (0..SLOTS).filter(|slot| state.batches[*slot].is_some()) {
            let batch = self.batch(slot, 0);
            // One that a flush for another paid is gone.
            let _ = board.ask(0, NOTIFIER, &WriteBack { batch });
        }
        (0..CPUS).for_each(|cpu| board.flush(cpu, None));
        let after = self.take(board);
        let waits = |page: &Page| matches!(page.is, Is::Waits(_));
        after.asked.is_empty() && after.batches.iter().all(Option::is_none) && !after.pages.iter().any(waits)
    }
}

/// A CPU counts as having flushed.
fn pay_for(board: &Board, cpu: usize) {
    board.tables(|tables| pay(tables, cpu, false));
}

impl Model for Small {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let page = Page { is: Is::Free { clean: true }, dirty: [false; CPUS], plain: false, waits: None };
        vec![State {
            pages: [page; PAGES],
            batches: [const { None }; SLOTS],
            asked: Vec::new(),
            rows: [0; CPUS],
            wanted: [false; CPUS],
            ran: [0; CPUS],
            owed: [None; SLOTS],
            held: [false; SLOTS],
            freed: false,
            fault: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.fault.is_some() {
            return;
        }
        let mut owned = Vec::new();
        for (page, is) in state.pages.iter().enumerate().take(self.pages) {
            // Alike: what happens to one could happen to the other.
            if page > 0 && state.pages[page - 1] == *is {
                continue;
            }
            match is.is {
                Is::Owned(vm) | Is::Private(vm) => {
                    let vm = usize::from(vm);
                    owned.push((vm, page));
                    actions.extend((0..CPUS).map(|cpu| Action::Unmap { vm, page, cpu }));
                    if self.events {
                        actions.push(Action::UnmapMore { vm, page });
                    }
                    if matches!(is.is, Is::Owned(_)) && self.encrypted(vm) {
                        actions.push(Action::Private { vm, page });
                        actions.push(Action::HostWrites { page });
                    }
                }
                _ => actions.extend((0..self.vms.len()).map(|vm| Action::Map { vm, page })),
            }
        }
        let in_event = |vm: usize| {
            let of = |batch: &Batch| batch.held && batch.vm == VmId::new(vm as u16, 0).bits();
            state.batches.iter().flatten().any(of)
        };
        for cpu in 0..CPUS {
            actions.extend((0..self.vms.len()).filter(|vm| in_event(*vm)).map(|vm| Action::End { vm, cpu }));
            actions.extend((0..self.vms.len()).map(|vm| Action::Run { vm, cpu }));
            for slot in (0..SLOTS).filter(|slot| state.batches[*slot].is_some()) {
                if !state.asked.contains(&(slot as u8)) {
                    actions.push(Action::WriteBack { slot, cpu });
                }
            }
            if state.wanted[cpu] {
                actions.push(Action::Flush { cpu });
                for asks in [false, true] {
                    actions.extend(owned.iter().map(|unmaps| Action::FlushWhile { cpu, unmaps: *unmaps, asks }));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let board = self.put(last);
        self.step(board, action);
        Some(self.take(board))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_DIRTY, |_, state: &State| {
                let free = |page: &&Page| matches!(page.is, Is::Free { .. } | Is::Paid { .. });
                state.fault != Some(REUSED) && !state.pages.iter().filter(free).any(|page| page.dirty.contains(&true))
            }),
            Property::always(EXACT, |small: &Self, state: &State| {
                let owed = state.batches.each_ref().map(|batch| batch.as_ref().map(|batch| batch.owed));
                let waits = |page: &Page| match page.is {
                    Is::Waits(slot) => page.waits == Some(slot),
                    _ => page.waits.is_none(),
                };
                owed == state.owed && state.pages.iter().take(small.pages).all(waits)
            }),
            Property::always(COUNTED, |_, state: &State| ![Some(COUNTS), Some(UNMAPPED)].contains(&state.fault)),
            Property::always(ROWS, |_, state: &State| state.rows == state.ran.map(u64::from)),
            Property::always(PLAIN, |_, state: &State| {
                !state.pages.iter().any(|page| matches!(page.is, Is::Private(_)) && page.plain)
            }),
            Property::always(HELD, |_, state: &State| {
                let held = |page: &&Page| page.waits.is_some_and(|slot| state.held[usize::from(slot)]);
                state.pages.iter().filter(held).all(|page| matches!(page.is, Is::Waits(_)))
            }),
            Property::always(DRAINS, |small: &Self, state: &State| state.fault.is_some() || small.drains(state)),
            Property::always(PLACED, |small: &Self, state: &State| {
                small.take(small.put(state)) == without_fault(state)
            }),
            Property::sometimes(FREED, |_, state: &State| {
                state.freed && state.pages.iter().any(|page| matches!(page.is, Is::Paid { .. }))
            }),
            Property::sometimes(GIVEN, |_, state: &State| {
                state.freed && state.pages.iter().any(|page| matches!(page.is, Is::Private(_)))
            }),
        ]
    }
}

/// What is wrong with a step isn't found in its result.
fn without_fault(state: &State) -> State {
    State { fault: None, ..state.clone() }
}

const NO_DIRTY: &str = "a free frame has no dirty line";
const EXACT: &str = "a batch is paid exactly when each CPU that owes has written back since";
const COUNTED: &str = "counts add up, and what is mapped is the VM's";
const ROWS: &str = "a row has the VMs that ran since the last write-back";
const PLAIN: &str = "a private page has no dirty line of the host's";
const HELD: &str = "no frame of an event is free before its end";
const DRAINS: &str = "whatever happened, all can be paid";
const PLACED: &str = "a state is what the kernel's tables hold";
const FREED: &str = "frames do become free again";
const GIVEN: &str = "and are used again";

/// One plain VM and one SEV VM that share three frames.
const TWO: Small = Small { vms: &[VmKind::Plain, VmKind::Sev], pages: 3, full: false, events: false, mutant: None };
/// Two SEV VMs and room for one batch, in which their frames wait together.
const FULL: Small = Small { vms: &[VmKind::Sev, VmKind::Sev], pages: 2, full: true, events: false, mutant: None };
/// Both of the first, where pages are taken in events.
const EVENTS: Small = Small { pages: 2, events: true, ..TWO };

fn all_holds(small: Small) {
    let began = std::time::Instant::now();
    let checker = small.checker().threads(2).spawn_bfs().join();
    let (unique, all, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    println!("{unique} states, {all} with repeats, {depth} deep, {:?}", began.elapsed());
    checker.assert_properties();
}

#[test]
fn frames_of_a_plain_and_a_sev_vm() {
    all_holds(TWO);
}

#[test]
fn frames_of_two_vms_that_wait_together() {
    all_holds(FULL);
}

#[test]
fn frames_that_are_taken_in_events() {
    all_holds(EVENTS);
}

/// What breaks which property.
const FOUND: &[(Mutant, &str)] = &[
    (Mutant::ForgetRow, NO_DIRTY),
    (Mutant::ForgetRow, ROWS),
    (Mutant::ClearAllRows, NO_DIRTY),
    (Mutant::ClearAllRows, ROWS),
    (Mutant::SkipExecution, NO_DIRTY),
    (Mutant::PayWhenAsked, EXACT),
    (Mutant::LoseDebt, NO_DIRTY),
    (Mutant::LoseDebt, EXACT),
    (Mutant::OweForEver, EXACT),
    (Mutant::OweForEver, DRAINS),
    (Mutant::CountTwice, COUNTED),
    (Mutant::SameId, EXACT),
    (Mutant::ForgetPlain, PLAIN),
    (Mutant::NeverFlush, DRAINS),
    (Mutant::HeldIsPaid, HELD),
    (Mutant::SampleEarly, NO_DIRTY),
    (Mutant::NeverEnd, DRAINS),
];

#[test]
fn what_is_broken_is_found() {
    for (mutant, property) in FOUND {
        let events = matches!(mutant, Mutant::HeldIsPaid | Mutant::SampleEarly | Mutant::NeverEnd);
        let small = Small { pages: 2, events, mutant: Some(*mutant), ..TWO };
        let finish = HasDiscoveries::AnyOf([*property].into());
        let checker = small.checker().threads(2).finish_when(finish).spawn_bfs().join();
        assert!(checker.discovery(property).is_some(), "{mutant:?} doesn't break: {property}");
    }
}

#[test]
fn no_frame_is_free_again_where_one_cpu_never_flushes() {
    let small = Small { pages: 2, mutant: Some(Mutant::OweForEver), ..TWO };
    let checker = small.checker().threads(2).finish_when(HasDiscoveries::AnyOf([FREED].into())).spawn_bfs().join();
    assert_eq!(checker.discovery(FREED).map(|path| path.into_actions()), None);
}
