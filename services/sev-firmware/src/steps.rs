//! Doing a step: what is asked of the kernel for it.

use caisson_proto::abi::{MAX_PAGES_PER_CALL, Status};
use caisson_proto::addr::{Gfn, PAGE_SIZE, Tsc, VmId};
use caisson_proto::firmware::{Cause, FirmwareCall, RegisterRegion};
use caisson_proto::kernel::{AsidBind, GuestConvert, MailboxRing, TicketCheck, WriteBackInvalidate};
use caisson_proto::mailbox;

use crate::asids::Found;
use crate::compose::{self, Piece};
use crate::engine::{Failure, Wait};
use crate::plan::{Page, Step};
use crate::regions::Region;
use crate::{Firmware, Guest, Kernel, Note, Phase, shape, status};

/// What a large page maps.
const LARGE: u64 = 512 * PAGE_SIZE;

impl Firmware {
    pub(crate) fn step(&mut self, step: Step, now: Tsc, kernel: &mut impl Kernel) -> Result<(), Failure> {
        match step {
            Step::Bind => self.bind(kernel),
            Step::WriteBack => self.write_back(now, kernel),
            Step::Fabric => {
                let command = if self.account.snp { mailbox::SNP_DF_FLUSH } else { mailbox::DF_FLUSH };
                self.ring(command, Piece::default(), now, kernel)
            }
            Step::Ring(command) => {
                let piece = match self.call() {
                    Some(FirmwareCall::LaunchSecret(secret)) => {
                        Piece { gpa: secret.gpa.0, bytes: u64::from(secret.bytes) }
                    }
                    _ => Piece::default(),
                };
                self.ring(command, piece, now, kernel)
            }
            Step::Reclaim(page) => self.reclaim(page, now, kernel),
            Step::Turn => self.turn(kernel),
            Step::Update(command) => self.update(command, now, kernel),
            Step::Survey(asid) => {
                self.look_at(asid, kernel);
                Ok(())
            }
        }
    }

    fn call(&self) -> Option<FirmwareCall> {
        self.engine.current.as_ref().and_then(|current| current.call)
    }

    /// The next steps come before those that are there already.
    pub(crate) fn first(&mut self, steps: &[Step]) {
        if let Some(current) = &mut self.engine.current {
            for step in steps.iter().rev() {
                // There is room: a job has a handful of steps.
                let _ = current.steps.push_front(*step);
            }
        }
    }

    fn bind(&mut self, kernel: &mut impl Kernel) -> Result<(), Failure> {
        let Some(current) = &mut self.engine.current else { return Ok(()) };
        let (vm, kind) = (current.vm, current.kind);
        if let Some(guest) = self.account.guests.get(vm) {
            // An earlier launch of it came so far.
            let usable = !self.account.leaked.contains(guest.asid);
            current.asid = guest.asid;
            return if usable { Ok(()) } else { Err(Failure::service(Status::State)) };
        }
        match self.account.leaked.look(self.classes, kind, kernel) {
            Found::Free(asid) => {
                kernel.ask(&AsidBind { vm, asid }).map_err(|status| Failure::kernel(status, 0))?;
                current.asid = asid;
                let before = self.account.guests.add(Guest { vm, kind, asid, phase: Phase::Bound });
                if let Some(before) = before.filter(|guest| guest.vm != vm && guest.phase != Phase::Bound) {
                    // Its VM is gone, and nobody asked to end it.
                    self.leak(before.asid, before.kind, kernel);
                }
                Ok(())
            }
            Found::Reclaimable if !current.flushed => {
                current.flushed = true;
                self.first(&[Step::WriteBack, Step::Fabric, Step::Bind]);
                Ok(())
            }
            Found::Reclaimable | Found::Nothing => Err(Failure::service(Status::Busy)),
        }
    }

    fn write_back(&mut self, now: Tsc, kernel: &mut impl Kernel) -> Result<(), Failure> {
        let refused = |status| Failure::kernel(status, 0);
        let ticket = kernel.ask(&WriteBackInvalidate {}).map_err(refused)?.ticket;
        if kernel.ask(&TicketCheck { ticket }).map_err(refused)?.done {
            kernel.note(Note::WroteBack);
        } else {
            self.wait_for(Wait::Ticket(ticket), now, kernel);
        }
        Ok(())
    }

    fn ring(&mut self, number: u16, piece: Piece, now: Tsc, kernel: &mut impl Kernel) -> Result<(), Failure> {
        let Some(current) = &mut self.engine.current else { return Ok(()) };
        let vm = if mailbox::names_guest(number) { current.vm } else { VmId::default() };
        match number {
            mailbox::SNP_GCTX_CREATE => current.undo = &[Step::Reclaim(Page::Context)],
            mailbox::SNP_LAUNCH_UPDATE => current.filling = Some(piece.gpa),
            _ => {}
        }
        let buffer = compose::buffer(number, current.call.as_ref(), piece);
        let pages = shape::data_pages(number, current.call.as_ref());
        self.area.lay_out(&buffer, self.jobs.data(current.slot), pages);
        let (lent, count) = self.area.lend();
        kernel
            .lend(&MailboxRing { command: number, vm }, lent, count)
            .map_err(|status| Failure::kernel(if is_flush(number) { Status::Busy } else { status }, number))?;
        self.wait_for(Wait::Command { number, vm }, now, kernel);
        Ok(())
    }

    fn reclaim(&mut self, page: Page, now: Tsc, kernel: &mut impl Kernel) -> Result<(), Failure> {
        self.engine.reclaims = page;
        let given = match page {
            Page::Context => mailbox::RECLAIM_CONTEXT,
            Page::Mailbox => mailbox::RECLAIM_MAILBOX,
            Page::Guest(gpa) => gpa | mailbox::RECLAIM_GUEST,
        };
        match self.ring(mailbox::SNP_PAGE_RECLAIM, Piece { gpa: given, bytes: 0 }, now, kernel) {
            // It has none.
            Err(Failure { status: Status::NotFound, .. }) => Ok(()),
            result => result,
        }
    }

    /// Turns the next chunk of a region private. A chunk ends where a large page would.
    fn turn(&mut self, kernel: &mut impl Kernel) -> Result<(), Failure> {
        let Some(current) = &mut self.engine.current else { return Ok(()) };
        let Some(FirmwareCall::RegisterRegion(RegisterRegion { vm, gfn, pages, .. })) = current.call else {
            return Ok(());
        };
        let done = current.report.done;
        let next = gfn.0 + done;
        let chunk = (pages - done).min(MAX_PAGES_PER_CALL - next % MAX_PAGES_PER_CALL);
        match kernel.ask(&GuestConvert { vm, gfn: Gfn(next), pages: chunk, private: true, large: false }) {
            Ok(_) if done + chunk < pages => {
                current.report.done += chunk;
                self.first(&[Step::Turn]);
                Ok(())
            }
            Ok(_) => {
                current.report.done = pages;
                self.account.regions.add(Region { vm, gfn, pages });
                Ok(())
            }
            Err(status) => {
                if done > 0 {
                    self.account.regions.add(Region { vm, gfn, pages: done });
                }
                Err(Failure::kernel(status, 0))
            }
        }
    }

    /// Has the next piece of memory measured: up to the end of a large page, or of a small one where the kernel says that it
    /// isn't mapped as one piece.
    fn update(&mut self, number: u16, now: Tsc, kernel: &mut impl Kernel) -> Result<(), Failure> {
        let Some(current) = &self.engine.current else { return Ok(()) };
        let (first, bytes) = memory(current.call.as_ref());
        let (gpa, left) = (first + current.report.done, bytes - current.report.done);
        let small = number != mailbox::LAUNCH_UPDATE_DATA || gpa < current.small_until;
        let unit = if small { PAGE_SIZE } else { LARGE };
        let piece = Piece { gpa, bytes: left.min(unit - gpa % unit) };
        match self.ring(number, piece, now, kernel) {
            Err(failure) if failure.status == Status::Range && gpa % PAGE_SIZE + piece.bytes > PAGE_SIZE => {
                if let Some(current) = &mut self.engine.current {
                    current.small_until = gpa - gpa % LARGE + LARGE;
                }
                self.first(&[Step::Update(number)]);
                Ok(())
            }
            result => result,
        }
    }

    /// A piece was measured.
    pub(crate) fn updated(&mut self, number: u16) {
        let Some(current) = &mut self.engine.current else { return };
        current.filling = None;
        let (first, bytes) = memory(current.call.as_ref());
        let gpa = first + current.report.done;
        let small = number != mailbox::LAUNCH_UPDATE_DATA || gpa < current.small_until;
        let unit = if small { PAGE_SIZE } else { LARGE };
        current.report.done += (bytes - current.report.done).min(unit - gpa % unit);
        if current.report.done < bytes {
            self.first(&[Step::Update(number)]);
        }
    }

    /// Whether the step that failed comes again after a flush: an ASID that the processor wants flushed, by its own account.
    pub(crate) fn again_after_flush(&mut self, failure: Failure) -> bool {
        let activates = matches!(failure.command, mailbox::ACTIVATE | mailbox::SNP_ACTIVATE);
        let owed = matches!(failure.firmware, status::WBINVD_REQUIRED | status::DFFLUSH_REQUIRED);
        let Some(current) = self.engine.current.as_mut().filter(|current| !current.flushed && !current.failed) else {
            return false;
        };
        if failure.cause != Cause::Processor || !activates || !owed {
            return false;
        }
        current.flushed = true;
        self.first(&[Step::WriteBack, Step::Fabric, Step::Ring(failure.command)]);
        true
    }
}

/// Guest memory that a request is about: first byte and how many.
fn memory(call: Option<&FirmwareCall>) -> (u64, u64) {
    match call {
        Some(FirmwareCall::LaunchUpdate(update)) => (update.gpa.0, update.bytes),
        Some(FirmwareCall::LaunchVmsa(update)) => (update.gfn.0 << 12, PAGE_SIZE),
        Some(FirmwareCall::SnpLaunchUpdate(update)) => (update.gfn.0 << 12, update.pages << 12),
        _ => (0, 0),
    }
}

pub(crate) fn is_flush(number: u16) -> bool {
    matches!(number, mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH)
}
