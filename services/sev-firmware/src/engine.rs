//! One job after the other, one step after the other, and never two commands at a time.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Ticket, Tsc, VmId};
use caisson_proto::firmware::{Cause, DATA_PAGES, FirmwareCall, JobId, JobReport, Life, PlatformCommand};
use caisson_proto::kernel::{MailboxReport, MailboxState, MailboxTake, TicketCheck, TimerSet, VmKind};
use caisson_proto::mailbox::{self, COMMANDS};

use crate::plan::{self, Page, Step, Steps};
use crate::{COMMAND_MS, FRESH, Firmware, Kernel, Note, WRITE_BACK_MS};

/// Steps in one activation that the kernel answers at once; a region takes many.
const STEPS_AT_ONCE: u32 = 8;

/// What the processor has of the mailbox comes back.
pub(crate) const MAILBOX: Step = Step::Reclaim(Page::Mailbox);

/// How often the processor is asked for the mailbox's pages, one by one, before a job ends without them; the next one begins so.
const TRIES: u32 = 2 * (1 + DATA_PAGES as u32);

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The answer to this command.
    Command { number: u16, vm: VmId },
    /// The answer to a predecessor's command.
    Predecessor,
    /// A write-back on all CPUs.
    Ticket(Ticket),
}

/// Why a step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub cause: Cause,
    pub status: Status,
    pub command: u16,
    pub firmware: u16,
}

impl Failure {
    pub const fn service(status: Status) -> Self {
        Self { cause: Cause::Service, status, command: 0, firmware: 0 }
    }

    pub const fn kernel(status: Status, command: u16) -> Self {
        Self { cause: Cause::Kernel, status, command, firmware: 0 }
    }
}

/// The job under way.
#[derive(Debug)]
pub(crate) struct Current {
    /// None: it is the look at what a predecessor left.
    pub job: Option<JobId>,
    pub call: Option<FirmwareCall>,
    pub slot: Option<usize>,
    /// Bytes of its data that it gives.
    pub gives: usize,
    pub vm: VmId,
    pub kind: VmKind,
    pub asid: u32,
    pub steps: Steps,
    /// What takes back what was done, if a later step fails.
    pub undo: &'static [Step],
    pub failed: bool,
    /// After a restart: the ASID isn't active, though the processor may know the guest.
    pub given_up: bool,
    /// ASIDs were flushed for it; that is done once.
    pub flushed: bool,
    /// The guest's page that the processor is filling, and keeps if it fails.
    pub filling: Option<u64>,
    /// Below this guest-physical address memory is measured page by page.
    pub small_until: u64,
    pub report: JobReport,
}

impl Current {
    /// Nothing, for nobody.
    pub const fn new() -> Self {
        Self {
            job: None,
            call: None,
            slot: None,
            gives: 0,
            vm: VmId::new(0, 0),
            kind: VmKind::Plain,
            asid: 0,
            steps: Steps::new(),
            undo: &[],
            failed: false,
            given_up: false,
            flushed: false,
            filling: None,
            small_until: 0,
            report: FRESH,
        }
    }
}

/// The engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub life: Life,
    pub current: Option<Current>,
    pub wait: Option<Wait>,
    /// What the last SNP_PAGE_RECLAIM was for.
    pub reclaims: Page,
    /// How often it was asked for the mailbox's pages since it got them.
    pub asked: u32,
    deadline: Tsc,
}

impl Engine {
    pub const fn new() -> Self {
        Self { life: Life::Ready, current: None, wait: None, reclaims: Page::Mailbox, asked: 0, deadline: Tsc(0) }
    }
}

impl Firmware {
    /// Waits, not for ever.
    pub(crate) fn wait_for(&mut self, wait: Wait, now: Tsc, kernel: &mut impl Kernel) {
        let ms = if matches!(wait, Wait::Ticket(_)) { WRITE_BACK_MS } else { COMMAND_MS };
        self.engine.wait = Some(wait);
        self.engine.deadline = Tsc(now.0.saturating_add(ms.saturating_mul(self.tsc_khz)).min(u64::MAX - 1));
        self.set_timer(self.engine.deadline, kernel);
    }

    fn set_timer(&self, at: Tsc, kernel: &mut impl Kernel) {
        // Without a timer a processor that is dead isn't found to be; nothing else depends on it.
        let _ = kernel.ask(&TimerSet { at });
    }

    fn waited(&mut self, kernel: &mut impl Kernel) {
        self.engine.wait = None;
        self.set_timer(Tsc(0), kernel);
    }

    /// Whether what is waited for has happened, or won't any more.
    pub(crate) fn poll(&mut self, now: Tsc, kernel: &mut impl Kernel) {
        let late = now >= self.engine.deadline;
        match self.engine.wait {
            Some(Wait::Ticket(ticket)) => self.poll_ticket(ticket, late, kernel),
            Some(wait) => self.poll_mailbox(wait, late, now, kernel),
            // A late answer is taken for the kernel's account; nobody here waits for it any more.
            None if self.engine.life == Life::Dead => drop(self.take(kernel)),
            None => {}
        }
    }

    fn poll_ticket(&mut self, ticket: Ticket, late: bool, kernel: &mut impl Kernel) {
        match kernel.ask(&TicketCheck { ticket }) {
            Ok(state) if state.done => {
                self.waited(kernel);
                kernel.note(Note::WroteBack);
            }
            Ok(state) if late => {
                self.waited(kernel);
                kernel.note(Note::Late(state.late));
                if let Some(current) = &mut self.engine.current {
                    current.report.done = u64::from(state.late.0);
                }
                self.failed(Failure::kernel(Status::Busy, 0), kernel);
            }
            Ok(_) => self.set_timer(self.engine.deadline, kernel),
            Err(status) => {
                self.waited(kernel);
                self.failed(Failure::kernel(status, 0), kernel);
            }
        }
    }

    pub(crate) fn take(&mut self, kernel: &mut impl Kernel) -> Result<MailboxReport, Status> {
        let (lent, pages) = self.area.lend();
        kernel.lend(&MailboxTake {}, lent, pages)
    }

    fn poll_mailbox(&mut self, wait: Wait, late: bool, now: Tsc, kernel: &mut impl Kernel) {
        let taken = self.take(kernel);
        match (taken, wait) {
            (Ok(report), _) if report.state == MailboxState::Busy && !late => {
                self.set_timer(self.engine.deadline, kernel);
            }
            (Ok(report), Wait::Command { number, vm })
                if report.state == MailboxState::Done && report.command == number && report.vm == vm =>
            {
                self.waited(kernel);
                kernel.note(Note::Answered { command: number, vm, status: report.status });
                if number == mailbox::SNP_PAGE_RECLAIM && self.engine.reclaims == Page::Mailbox {
                    // What it answers counts less than what the kernel has back then.
                    self.engine.asked += 1;
                    if self.engine.asked < TRIES {
                        self.first(&[MAILBOX]);
                    }
                    return;
                }
                self.answered(number, report.status, kernel);
                if writes(number) {
                    self.engine.asked = 0;
                    self.first(&[MAILBOX]);
                }
            }
            (Ok(report), Wait::Predecessor) if report.state == MailboxState::Done => {
                self.waited(kernel);
                self.survey();
            }
            // Too late, or the answer to a question that wasn't asked: nobody can say what the processor does now.
            (_, Wait::Command { number, .. }) => self.die(number, now, kernel),
            (_, _) => self.die(0, now, kernel),
        }
    }

    fn die(&mut self, command: u16, now: Tsc, kernel: &mut impl Kernel) {
        self.waited(kernel);
        self.engine.life = Life::Dead;
        kernel.note(Note::Dead { command });
        let dead = JobReport { status: Status::Unsupported, cause: Cause::Dead, ..FRESH };
        if let Some(current) = self.engine.current.take()
            && let Some(job) = current.job
        {
            self.tell(job, JobReport { command, done: current.report.done, ..dead }, now, kernel);
        }
        while let Some(job) = self.jobs.next() {
            self.tell(job.id, dead, now, kernel);
        }
    }

    fn tell(&mut self, job: JobId, report: JobReport, now: Tsc, kernel: &mut impl Kernel) {
        if let Some(client) = self.jobs.end(job, report, now) {
            kernel.bell(client);
        }
    }

    /// Goes on until there is something to wait for, or nothing to do.
    pub(crate) fn run(&mut self, now: Tsc, kernel: &mut impl Kernel) {
        let mut left = STEPS_AT_ONCE;
        while self.engine.wait.is_none() && self.engine.life != Life::Dead {
            let Some(current) = &mut self.engine.current else {
                if !self.take_up(now, kernel) {
                    return;
                }
                continue;
            };
            if current.steps.is_empty() {
                self.finish(now, kernel);
                continue;
            }
            if left == 0 && kernel.again() {
                return;
            }
            left = left.saturating_sub(1);
            let Some(step) = current.steps.pop_front() else { return };
            if let Err(failure) = self.step(step, now, kernel) {
                self.failed(failure, kernel);
            }
        }
    }

    /// Begins the next job. False if there is none.
    fn take_up(&mut self, now: Tsc, kernel: &mut impl Kernel) -> bool {
        let Some(job) = self.jobs.next() else { return false };
        let steps = match job.call {
            FirmwareCall::PlatformDo(request)
                if request.command == PlatformCommand::Flush
                    && !self.account.leaked.any_reclaimable(self.classes, kernel) =>
            {
                Err(Status::Busy)
            }
            _ => plan::steps(&job.call, job.kind, &mut self.account),
        };
        let steps = match steps {
            Ok(steps) => steps,
            Err(status) => {
                self.tell(job.id, JobReport { status, cause: Cause::Service, ..FRESH }, now, kernel);
                return true;
            }
        };
        let vm = crate::check::vm(&job.call).unwrap_or_default();
        self.engine.current = Some(Current {
            job: Some(job.id),
            call: Some(job.call),
            slot: job.slot,
            gives: job.gives.bytes,
            vm,
            kind: job.kind,
            asid: self.account.guests.get(vm).map_or(0, |guest| guest.asid),
            steps,
            ..Current::new()
        });
        if core::mem::take(&mut self.engine.asked) >= TRIES {
            self.first(&[MAILBOX]);
        }
        true
    }

    /// The current job is over.
    fn finish(&mut self, now: Tsc, kernel: &mut impl Kernel) {
        let Some(current) = self.engine.current.take() else { return };
        if let Some(FirmwareCall::Decommission(end)) = current.call
            && self.account.guests.get(end.vm).is_none_or(|guest| guest.phase == crate::Phase::Bound)
        {
            self.account.regions.forget(end.vm);
        }
        match current.job {
            Some(job) => self.tell(job, current.report, now, kernel),
            None => self.engine.life = Life::Ready,
        }
    }

    /// A step failed: what was done before it is undone, and the first failure is what the client is told.
    pub(crate) fn failed(&mut self, failure: Failure, kernel: &mut impl Kernel) {
        if self.again_after_flush(failure) {
            return;
        }
        let Some(current) = &self.engine.current else { return };
        if current.given_up && failure.command == mailbox::SNP_DECOMMISSION {
            // It was forgotten already; or else its page won't come back.
            return;
        }
        self.count_leaks(failure, kernel);
        self.after_failure(failure);
        // It may be that some pages of the mailbox were lent, and not all: whatever comes next needs them back.
        if failure.cause == Cause::Kernel && failure.status == Status::State && writes(failure.command) {
            self.engine.asked = 0;
            self.first(&[MAILBOX]);
        }
    }

    /// The steps that are left after a failure: a job's are undone; in a survey the next row is another matter.
    fn after_failure(&mut self, failure: Failure) {
        let Some(current) = &mut self.engine.current else { return };
        if current.job.is_none() {
            while current.steps.front().is_some_and(|step| !matches!(step, Step::Survey(_))) {
                current.steps.pop_front();
            }
            return;
        }
        current.steps.clear();
        if current.failed {
            return;
        }
        current.failed = true;
        current.report.status = failure.status;
        current.report.cause = failure.cause;
        current.report.command = failure.command;
        current.report.firmware = failure.firmware;
        current.steps = plan::list(core::mem::take(&mut current.undo));
        if let Some(page) = current.filling.take() {
            self.first(&[Step::Reclaim(Page::Guest(page))]);
        }
    }
}

/// Whether the processor writes an answer to this command, for which it is lent the mailbox's pages.
fn writes(number: u16) -> bool {
    COMMANDS.iter().any(|command| command.number == number && command.writes)
}
