//! ASIDs: VMs that come, are bound, launched, activated, and go, in any order, with a processor that accepts a command or
//! refuses it.

use std::sync::atomic::Ordering::SeqCst;

use caisson_core::asids::{Asid, Asids};
use caisson_proto::addr::Frame;
use caisson_proto::kernel::{
    AsidBind, AsidState, MailboxReport, MailboxRing, MailboxState, MailboxTake, VmCreate, VmDestroy, VmKind, VmRelease,
    WriteBack, WriteBackInvalidate,
};
use caisson_proto::mailbox::{ACTIVATE, DEACTIVATE, DECOMMISSION, DF_FLUSH, INIT, LAUNCH_START, SHUTDOWN};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::board::{ASIDS, Board, CPUS, FIRMWARE, MEMORY, Mutant, NOTIFIER, ROOT, Truth, VMM};
use super::common::pay;
use super::recycling::{AT_ONCE, NOBODY, Recycling, Row, Slot, State, free};

const BOUND: &str = "an ASID was bound too early";

/// What happens, on one CPU or while another executes WBINVD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A VM is made and bound. If that is refused it goes again.
    Come(usize),
    /// A VM is destroyed and released. If that is refused it is dying.
    Go(usize),
    /// sev-firmware rings a command for who has an ASID, or had it last.
    Ring(u16, Option<usize>),
    /// The processor accepts the command or refuses it, and sev-firmware takes the answer.
    Answer(bool),
    Wbinvd(usize),
    Flush(usize),
    FlushWhile(usize, Meanwhile),
}

/// What another CPU does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    Answer(bool),
    Go(usize),
    Wbinvd,
}

impl Recycling {
    fn go(&self, board: &'static Board, slot: usize) {
        let vm = board.kernel.vms[slot].id.get();
        let _ = board.ask(0, MEMORY, &VmDestroy { vm });
        let asid = board.tables(|tables| tables.books[slot].asid).checked_sub(1);
        let Ok(released) = board.ask(0, MEMORY, &VmRelease { vm }) else { return };
        board.ask(0, NOTIFIER, &WriteBack { batch: released.batch }).unwrap();
        if let Some(asid) = asid.map(|asid| asid as usize) {
            let mut truth = board.truth.borrow_mut();
            if truth.bound[asid] && !truth.active[asid] {
                truth.give_up(asid);
            }
            if board.is(Mutant::FreeAtRelease) {
                board.tables(|tables| {
                    turn(tables.asids.get(asid as u32 + 1).unwrap(), AsidState::Dirty, AsidState::Free)
                });
            }
        }
    }

    fn answer(&self, board: &'static Board, accepts: bool) {
        let MailboxReport { command, vm, .. } = board.tables(|tables| tables.mailbox);
        let of = board.tables(|tables| Some(tables.asids.of(vm)?.0 as usize - 1));
        let handle = 16 + of.unwrap_or(0) as u64;
        board.mailbox.command[0][0].store(handle, SeqCst);
        board.mailbox.registers[0].store(1 << 31 | u32::from(!accepts), SeqCst);
        board.ask(0, FIRMWARE, &MailboxTake {}).unwrap();
        let mut truth = board.truth.borrow_mut();
        let flushing = std::mem::take(&mut truth.flushing);
        if !accepts {
            return;
        }
        match (command, of) {
            (LAUNCH_START, Some(asid)) => truth.known[asid] = true,
            (ACTIVATE, Some(asid)) => truth.active[asid] = true,
            (DEACTIVATE, Some(asid)) => {
                truth.give_up(asid);
                if board.is(Mutant::LateDeactivation) {
                    board.tables(|tables| tables.asids.get(asid as u32 + 1).unwrap().deactivate(0));
                }
            }
            (DECOMMISSION, Some(asid)) => truth.known[asid] = false,
            (DF_FLUSH, _) => (0..ASIDS).for_each(|asid| truth.unflushed[asid] &= !flushing[asid]),
            // Whatever the firmware knew of caches is lost.
            (INIT, _) => (0..ASIDS).for_each(|asid| truth.unflushed[asid] |= !truth.bound[asid]),
            (SHUTDOWN, _) => {
                truth.known = [false; ASIDS];
                for asid in 0..ASIDS {
                    if truth.active[asid] {
                        truth.give_up(asid);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a processor that works could accept the command that it has.
    fn can_accept(&self, state: &State) -> bool {
        let Some((command, vm)) = state.mailbox else { return false };
        let of = state.rows.iter().position(|row| row.vm == vm && row.kind != 0);
        let is = |set: [bool; ASIDS]| of.is_some_and(|asid| set[asid]);
        match command {
            ACTIVATE => is(state.truth.known) && !is(state.truth.active),
            DEACTIVATE => is(state.truth.active),
            DECOMMISSION => is(state.truth.known) && !is(state.truth.active),
            // It is initialised as long as it knows a guest.
            INIT => !state.truth.known.contains(&true),
            _ => true,
        }
    }

    fn step(&self, board: &'static Board, action: Action) {
        match action {
            Action::Come(asid) => {
                let slot = board.kernel.vms.iter().position(|vm| vm.state().is_none()).unwrap();
                let (handler, root) = (board.kernel.service(VMM).id.get(), Frame(ROOT + slot as u64));
                let vm = board.ask(0, MEMORY, &VmCreate { handler, kind: VmKind::SevEs, root }).unwrap().vm;
                if board.ask(0, FIRMWARE, &AsidBind { vm, asid: asid as u32 + 1 }).is_err() {
                    return self.go(board, slot);
                }
                let mut truth = board.truth.borrow_mut();
                if !truth.is_clean(asid) || truth.bound[asid] || truth.known[asid] {
                    board.fault.set(Some(BOUND));
                }
                truth.bound[asid] = true;
            }
            Action::Go(slot) => self.go(board, slot),
            Action::Ring(command, asid) => {
                let vm =
                    asid.map_or(NOBODY, |asid| board.tables(|tables| tables.asids.get(asid as u32 + 1).unwrap().vm));
                if board.ask(0, FIRMWARE, &MailboxRing { command, vm }).is_ok() && command == DF_FLUSH {
                    // It may execute it at once: what happens from now on it doesn't reach.
                    let mut truth = board.truth.borrow_mut();
                    truth.flushing = std::array::from_fn(|asid| truth.unflushed[asid] && truth.stale[asid] == 0);
                }
            }
            Action::Answer(accepts) => self.answer(board, accepts),
            Action::Wbinvd(cpu) => drop(board.ask(cpu, FIRMWARE, &WriteBackInvalidate {}).unwrap()),
            Action::Flush(cpu) => board.flush(cpu, None),
            Action::FlushWhile(cpu, meanwhile) => {
                let small = *self;
                let other = move || match meanwhile {
                    Meanwhile::Answer(accepts) => small.answer(board, accepts),
                    Meanwhile::Go(slot) => small.go(board, slot),
                    Meanwhile::Wbinvd => drop(board.ask(1 - cpu, FIRMWARE, &WriteBackInvalidate {}).unwrap()),
                };
                board.flush(cpu, Some(Box::new(other)));
            }
        }
        self.break_tables(board, action);
    }

    fn break_tables(&self, board: &Board, action: Action) {
        let flushed = matches!(action, Action::Wbinvd(_) | Action::Flush(_) | Action::FlushWhile(..));
        board.tables(|tables| match board.mutant.get() {
            Some(Mutant::OneCpu) if flushed => {
                for cpu in 0..CPUS {
                    pay(tables, cpu, true);
                }
            }
            Some(Mutant::SkipDfFlush) => each(&mut tables.asids, |asid| {
                if !asid.is_known() {
                    turn(asid, AsidState::Flushed, AsidState::Free);
                }
            }),
            Some(Mutant::NeverRecycle) => {
                each(&mut tables.asids, |asid| turn(asid, AsidState::Flushed, AsidState::Dirty))
            }
            Some(Mutant::ReuseLeaked) => each(&mut tables.asids, |asid| {
                if asid.state == AsidState::Flushed {
                    asid.handle = 0;
                }
            }),
            _ => {}
        });
    }

    /// Whether every ASID can be had again: when all VMs go, all guests are given up, and then WBINVD and DF_FLUSH.
    fn drains(&self, state: &State) -> bool {
        let board = self.put(state);
        if state.mailbox.is_some() {
            self.answer(board, false);
        }
        for slot in 0..AT_ONCE {
            self.go(board, slot);
        }
        let command = |command: u16, asid: Option<usize>| {
            self.step(board, Action::Ring(command, asid));
            if board.tables(|tables| tables.mailbox.state) == MailboxState::Busy {
                self.answer(board, true);
            }
        };
        for asid in 0..ASIDS {
            let row = board.tables(|tables| *tables.asids.get(asid as u32 + 1).unwrap());
            if row.state == AsidState::Active {
                command(DEACTIVATE, Some(asid));
            }
            if row.handle != 0 {
                command(DECOMMISSION, Some(asid));
            }
        }
        self.step(board, Action::Wbinvd(0));
        (0..CPUS).for_each(|cpu| self.step(board, Action::Flush(cpu)));
        command(DF_FLUSH, None);
        let after = self.take(board);
        after.open.is_empty() && after.rows.iter().all(|row| row.state == AsidState::Free as u8)
    }
}

fn turn(asid: &mut Asid, from: AsidState, to: AsidState) {
    if asid.state == from {
        if to == AsidState::Free {
            *asid = free();
        }
        asid.state = to;
    }
}

fn each(asids: &mut Asids, change: impl Fn(&mut Asid)) {
    (1..=ASIDS as u32).for_each(|asid| change(asids.get(asid).unwrap()));
}

impl Model for Recycling {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let nothing = State {
            slots: [Slot { state: None, asid: 0 }; AT_ONCE],
            rows: [Row { state: 0, kind: 0, vm: NOBODY, handle: false, since: 0 }; ASIDS],
            mailbox: None,
            batch: None,
            tickets: 1,
            rung: 0,
            open: Vec::new(),
            wanted: [(false, false); CPUS],
            truth: Truth::default(),
            recycled: false,
            fault: None,
        };
        vec![nothing]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.fault.is_some() {
            return;
        }
        let lives = |slot: &usize| state.slots[*slot].state.is_some();
        if (0..AT_ONCE).filter(lives).count() < self.vms {
            actions.extend((0..ASIDS).map(Action::Come));
        }
        actions.extend((0..AT_ONCE).filter(lives).map(Action::Go));
        if state.mailbox.is_none() {
            let platform = if self.platform { 3 } else { 1 };
            actions
                .extend([DF_FLUSH, INIT, SHUTDOWN].iter().take(platform).map(|command| Action::Ring(*command, None)));
            for asid in (0..ASIDS).filter(|asid| state.rows[*asid].kind != 0) {
                let commands = [ACTIVATE, DEACTIVATE, DECOMMISSION];
                actions.extend(commands.map(|command| Action::Ring(command, Some(asid))));
                if state.truth.bound[asid] {
                    actions.push(Action::Ring(LAUNCH_START, Some(asid)));
                }
            }
        } else {
            actions.push(Action::Answer(false));
            actions.extend(self.can_accept(state).then_some(Action::Answer(true)));
        }
        for cpu in 0..CPUS {
            if state.open.len() < self.tickets {
                actions.push(Action::Wbinvd(cpu));
            }
            if state.wanted[cpu].0 {
                actions.push(Action::Flush(cpu));
                actions.extend((0..AT_ONCE).filter(lives).map(|slot| Action::FlushWhile(cpu, Meanwhile::Go(slot))));
                if self.can_accept(state) {
                    actions.push(Action::FlushWhile(cpu, Meanwhile::Answer(true)));
                }
                if state.open.len() < self.tickets {
                    actions.push(Action::FlushWhile(cpu, Meanwhile::Wbinvd));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let board = self.put(last);
        self.step(board, action);
        let mut next = self.take(board);
        let free = |state: &State| state.rows.iter().filter(|row| row.state == AsidState::Free as u8).count();
        next.recycled = free(&next) > free(last);
        Some(next.representative())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(CLEAN, |_, state: &State| {
                let free = |asid: &usize| state.rows[*asid].state == AsidState::Free as u8;
                state.fault != Some(BOUND) && (0..ASIDS).filter(free).all(|asid| state.truth.is_clean(asid))
            }),
            Property::always(FORGOTTEN, |_, state: &State| {
                let free = |asid: &usize| state.rows[*asid].state == AsidState::Free as u8;
                !(0..ASIDS).filter(free).any(|asid| state.truth.known[asid])
            }),
            Property::always(FLUSHED, |_, state: &State| {
                let flushed = |asid: &usize| state.rows[*asid].state == AsidState::Flushed as u8;
                (0..ASIDS).filter(flushed).all(|asid| state.truth.stale[asid] == 0)
            }),
            Property::always(DRAINS, |small: &Self, state: &State| state.fault.is_some() || small.drains(state)),
            Property::always(PLACED, |small: &Self, state: &State| {
                let again = State { recycled: state.recycled, ..small.take(small.put(state)) };
                state.fault.is_some() || again == *state
            }),
            Property::sometimes(RECYCLED, |_, state: &State| state.recycled),
        ]
    }
}

const CLEAN: &str = "an ASID is free only after WBINVD on all CPUs since it was given up, and DF_FLUSH since that";
const FORGOTTEN: &str = "the guest of a free ASID is forgotten";
const FLUSHED: &str = "an ASID is flushed only after WBINVD on all CPUs since it was given up";
const DRAINS: &str = "whatever happened, each ASID can be had again";
const PLACED: &str = "a state is what the kernel's tables hold";
const RECYCLED: &str = "ASIDs are bound again";

/// Two VMs that come and go.
const TWO: Recycling = Recycling { vms: 2, tickets: 1, platform: false, mutant: None };
/// One, and a platform that is initialised and shut down.
const ONE: Recycling = Recycling { vms: 1, tickets: 2, platform: true, mutant: None };

fn all_holds(small: Recycling) {
    let began = std::time::Instant::now();
    let checker = small.checker().threads(2).spawn_bfs().join();
    let (unique, all, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    println!("{unique} states, {all} with repeats, {depth} deep, {:?}", began.elapsed());
    checker.assert_properties();
}

#[test]
fn asids_of_two_vms() {
    all_holds(TWO);
}

#[test]
fn asids_of_a_platform_that_is_shut_down() {
    all_holds(ONE);
}

/// What breaks which property.
const FOUND: &[(Mutant, &str)] = &[
    (Mutant::TooWeak, FLUSHED),
    (Mutant::TooWeak, CLEAN),
    (Mutant::SkipExecution, FLUSHED),
    (Mutant::OneCpu, FLUSHED),
    (Mutant::OneCpu, CLEAN),
    (Mutant::SkipDfFlush, CLEAN),
    (Mutant::EarlyDfFlush, CLEAN),
    (Mutant::LateDeactivation, FLUSHED),
    (Mutant::FreeAtRelease, CLEAN),
    (Mutant::ReuseLeaked, FORGOTTEN),
    (Mutant::NeverRecycle, DRAINS),
    (Mutant::NeverFlush, DRAINS),
];

fn find(mutant: Mutant, property: &'static str) -> Option<Vec<Action>> {
    let finish = HasDiscoveries::AnyOf([property].into());
    let checker = Recycling { mutant: Some(mutant), ..TWO }.checker().threads(2).finish_when(finish).spawn_bfs().join();
    checker.discovery(property).map(|path| path.into_actions())
}

#[test]
fn what_is_broken_is_found() {
    for (mutant, property) in FOUND {
        assert!(find(*mutant, property).is_some(), "{mutant:?} doesn't break: {property}");
    }
}

#[test]
fn no_asid_is_bound_again_where_none_is_recycled() {
    assert_eq!(find(Mutant::NeverRecycle, RECYCLED), None);
}
