//! The state machine.

use caisson_proto::abi::{MAX_SERVICES, Status, doorbell};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{ServiceReport, ServiceState, VmKind};
use caisson_proto::supervisor::{End, Forgive, Notice, SupervisorCall, verdict};
use caisson_proto::wire::Words;
use heapless::Deque;

use crate::burial::{Decision, decide, is_dead, notice, predecessor, worse};
use crate::limit::{History, RESET_WINDOW_MS, WINDOW_MS};
use crate::machine::{Event, Machine, Setup};

/// Milliseconds until a restart that wasn't possible yet is tried again, and between two looks at the end.
const TICK_MS: u64 = 5;
/// Ticks at the end for the console to send what it has; more if notices still wait, up to [`LAST_TICKS`].
const DRAIN_TICKS: u32 = 10;
/// Ticks at the end after which the machine is ended whatever waits.
const LAST_TICKS: u32 = 200;
/// Milliseconds that memory has to settle when all VMs are over.
const SETTLE_MS: u64 = 10_000;
/// `SETTLED` must come that often after a VM's death.
const CONFIRMATIONS: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Runs, or isn't watched.
    Alive,
    /// To be started as soon as the kernel can.
    Due(ServiceId),
    /// To be started when memory has settled.
    Waits(ServiceId),
    /// For good.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// All VMs are over; memory must settle until this time.
    Settling(u64),
    /// Ticks passed since all was over.
    Draining(u32),
    Ended,
}

/// The supervisor's state.
#[derive(Debug)]
pub struct Supervisor {
    setup: Setup,
    watch: [Watch; MAX_SERVICES],
    history: [History; MAX_SERVICES],
    /// Records that the console had no room for.
    unposted: Deque<Notice, MAX_SERVICES>,
    verdict: u8,
    /// How often `SETTLED` must still come.
    unsettled: u8,
    phase: Phase,
}

impl Supervisor {
    /// Nothing started yet.
    pub const fn new() -> Self {
        Self {
            setup: Setup { own: ServiceId::new(0, 0), services: 0, is_vmm: [false; MAX_SERVICES], processor: None },
            watch: [Watch::Alive; MAX_SERVICES],
            history: [const { History::new() }; MAX_SERVICES],
            unposted: Deque::new(),
            verdict: verdict::CLEAN,
            unsettled: 0,
            phase: Phase::Running,
        }
    }

    /// Starts every service, callees before their callers: the slots are in rank order. A successor finds most of them
    /// running, and what its predecessor knew in the kernel's reports: who is dead, and of what. So it does again what
    /// was perhaps done already, which does no harm.
    pub fn start(&mut self, setup: &Setup, machine: &mut impl Machine) {
        self.setup = *setup;
        if setup.own.generation() > 0 {
            machine.log(Event::Succeeds);
            self.verdict = verdict::FAULTED;
            let _ = self.unposted.push_back(notice(&predecessor(setup.own), true));
        }
        for slot in self.others() {
            match machine.status(slot as u16) {
                Ok(report) if report.state == ServiceState::Unstarted => {
                    self.set(slot, Watch::Due(report.id));
                    self.start_due(slot, machine);
                }
                Ok(_) => {}
                Err(status) => self.cannot_start(slot, status, machine),
            }
        }
        self.look(machine);
    }

    /// Doorbells rang.
    pub fn doorbell(&mut self, bits: u64, machine: &mut impl Machine) {
        // Before the deaths: it can only tell of earlier ones.
        if bits & doorbell::SETTLED != 0 {
            self.settled(machine);
        }
        if bits & doorbell::TIMER != 0 {
            self.tick(machine);
        }
        self.look(machine);
    }

    /// Answers one request.
    pub fn handle(&mut self, sender: ServiceId, words: &Words, machine: &mut impl Machine) -> (Status, Words) {
        let answer = match SupervisorCall::decode(words) {
            Ok(SupervisorCall::End(End { slot })) => self.end(slot, sender, machine),
            Ok(SupervisorCall::Forgive(Forgive { slot })) => match self.history.get_mut(usize::from(slot)) {
                Some(history) if slot < self.setup.services => {
                    *history = History::new();
                    Ok(())
                }
                _ => Err(Status::NotFound),
            },
            Err(_) => Err(Status::Malformed),
        };
        (answer.err().unwrap_or(Status::Ok), [0; 8])
    }

    fn end(&mut self, slot: u16, sender: ServiceId, machine: &mut impl Machine) -> Result<(), Status> {
        let report = machine.status(slot)?;
        machine.log(Event::Asked(slot, sender));
        if usize::from(slot) == self.setup.own.index() {
            machine.end_itself();
            return Ok(());
        }
        machine.kill(report.id)
    }

    fn slots(&self) -> usize {
        usize::from(self.setup.services).min(MAX_SERVICES)
    }

    /// Every slot but its own, callees first.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.setup.own.index();
        (0..self.slots()).rev().filter(move |&slot| slot != own)
    }

    fn is_vmm(&self, slot: usize) -> bool {
        self.setup.is_vmm.get(slot).is_some_and(|&is| is)
    }

    fn watch(&self, slot: usize) -> Watch {
        self.watch.get(slot).copied().unwrap_or(Watch::Over)
    }

    fn set(&mut self, slot: usize, watch: Watch) {
        if let Some(place) = self.watch.get_mut(slot) {
            *place = watch;
        }
    }

    /// Looks at every service, does what is due, and arranges for what isn't possible yet.
    fn look(&mut self, machine: &mut impl Machine) {
        if self.phase == Phase::Ended {
            return;
        }
        for slot in self.others() {
            if self.watch(slot) == Watch::Alive
                && let Ok(report) = machine.status(slot as u16)
                && is_dead(report.state)
            {
                self.died(slot, &report, machine);
            }
            self.start_due(slot, machine);
        }
        self.post_rest(machine);
        let watched = || self.watch.iter().take(self.slots()).enumerate();
        let due = watched().any(|(_, watch)| matches!(watch, Watch::Due(_)));
        let over = watched().all(|(slot, &watch)| !self.is_vmm(slot) || watch == Watch::Over);
        if over && self.phase == Phase::Running {
            self.phase = Phase::Settling(machine.now_ms().saturating_add(SETTLE_MS));
        }
        if matches!(self.phase, Phase::Settling(_)) && self.unsettled == 0 {
            machine.log(Event::Settled);
            self.phase = Phase::Draining(0);
        }
        let busy = due || !self.unposted.is_empty() || matches!(self.phase, Phase::Draining(_));
        if busy {
            machine.timer_in(TICK_MS);
        } else if matches!(self.phase, Phase::Settling(_)) {
            machine.timer_in(SETTLE_MS / 10);
        }
    }

    fn died(&mut self, slot: usize, report: &ServiceReport, machine: &mut impl Machine) {
        let decision = decide(self.is_vmm(slot), report);
        machine.log(Event::Died(report, decision));
        if self.is_vmm(slot) {
            self.unsettled = CONFIRMATIONS;
            machine.vm_gone();
        }
        if let Some([processor, speaker]) = self.setup.processor
            && usize::from(processor) == slot
        {
            unprotect(speaker, machine);
        }
        let now = machine.now_ms();
        let allowed = match decision {
            Decision::Bury(_) => false,
            Decision::Restart | Decision::Reset => {
                let window = if decision == Decision::Reset { RESET_WINDOW_MS } else { WINDOW_MS };
                let allowed = self.history.get_mut(slot).is_some_and(|history| history.allow(now, window));
                if !allowed {
                    machine.log(Event::GivenUp(slot as u16));
                }
                allowed
            }
        };
        let _ = self.unposted.push_back(notice(report, allowed));
        if decision == Decision::Restart && report.state != ServiceState::Killed {
            // The guests may go on; whoever started the machine learns of it all the same.
            self.verdict = worse(self.verdict, verdict::FAULTED);
        }
        match decision {
            Decision::Restart if allowed => self.set(slot, Watch::Due(report.id)),
            Decision::Reset if allowed => self.set(slot, Watch::Waits(report.id)),
            // A guest that resets without end gets nowhere by itself.
            Decision::Reset => self.over(slot, verdict::GUEST_CRASHED),
            Decision::Bury(verdict) => self.over(slot, verdict),
            Decision::Restart => self.give_up(slot),
        }
    }

    fn over(&mut self, slot: usize, verdict: u8) {
        self.set(slot, Watch::Over);
        self.verdict = worse(self.verdict, verdict);
    }

    /// Without this service the machine is of no use.
    fn give_up(&mut self, slot: usize) {
        self.over(slot, verdict::FAULTED);
        if matches!(self.phase, Phase::Running | Phase::Settling(_)) {
            self.phase = Phase::Draining(0);
        }
    }

    fn start_due(&mut self, slot: usize, machine: &mut impl Machine) {
        let Watch::Due(id) = self.watch(slot) else { return };
        match machine.restart(id) {
            Ok(id) => {
                self.set(slot, Watch::Alive);
                machine.log(Event::Started(id));
                // What the dead generation had been told about VMs and not done, the new one is told again.
                if self.unsettled > 0 {
                    self.unsettled = CONFIRMATIONS;
                    machine.vm_gone();
                }
            }
            // A call into the dead generation is still being unwound.
            Err(Status::State | Status::Busy) => {}
            Err(status) => self.cannot_start(slot, status, machine),
        }
    }

    fn cannot_start(&mut self, slot: usize, status: Status, machine: &mut impl Machine) {
        machine.log(Event::NotStarted(slot as u16, status));
        if self.is_vmm(slot) {
            self.over(slot, verdict::BAD_SETUP);
        } else {
            self.give_up(slot);
        }
    }

    fn settled(&mut self, machine: &mut impl Machine) {
        if self.unsettled == 0 {
            return;
        }
        self.unsettled -= 1;
        if self.unsettled > 0 {
            machine.vm_gone();
            return;
        }
        for slot in 0..self.slots() {
            if let Watch::Waits(id) = self.watch(slot) {
                self.set(slot, Watch::Due(id));
            }
        }
    }

    fn tick(&mut self, machine: &mut impl Machine) {
        match self.phase {
            Phase::Settling(until) if machine.now_ms() >= until => {
                machine.log(Event::NotSettled);
                self.verdict = verdict::FAULTED;
                self.phase = Phase::Draining(0);
            }
            Phase::Draining(ticks) => {
                let read = self.unposted.is_empty() && machine.all_read();
                if ticks >= LAST_TICKS || ticks >= DRAIN_TICKS && read {
                    self.phase = Phase::Ended;
                    machine.power_off(self.verdict);
                } else {
                    if ticks + 2 == DRAIN_TICKS {
                        machine.log(Event::Ending(self.verdict));
                    }
                    self.phase = Phase::Draining(ticks + 1);
                }
            }
            Phase::Running | Phase::Settling(_) | Phase::Ended => {}
        }
    }

    fn post_rest(&mut self, machine: &mut impl Machine) {
        while let Some(notice) = self.unposted.front() {
            if !machine.post(notice) {
                break;
            }
            self.unposted.pop_front();
        }
    }
}

/// The keys of encrypted guests were the processor's, and are lost with it: their vmms end. So does whoever spoke for it: its
/// successor asks the new one how it stands. Who isn't running has nothing to lose.
fn unprotect(speaker: u16, machine: &mut impl Machine) {
    let mut slot = 0;
    while let Some(vm) = machine.vm(slot).filter(|vm| vm.next > slot) {
        slot = vm.next;
        if vm.kind != VmKind::Plain {
            end_unprotected(vm.handler, machine);
        }
    }
    if let Ok(report) = machine.status(speaker) {
        end_unprotected(report.id, machine);
    }
}

fn end_unprotected(id: ServiceId, machine: &mut impl Machine) {
    if machine.kill(id).is_ok() {
        machine.log(Event::Unprotected(id));
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}
