//! sev-firmware.

use std::cell::Cell;

use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{PAGE_SIZE, ServiceId, Tsc, VPage, VmId};
use caisson_proto::kernel::{MachineInfo, MailboxReport, MailboxRing, MailboxState, MailboxTake, WriteBackInvalidate};
use caisson_proto::mailbox;
use caisson_proto::wire::{Reply, Request, Words};
use caisson_sev_firmware::{Firmware, Kernel, Lent, Note, Pages};

use super::{Server, serve};
use crate::hardware::COMPOSED;
use crate::history::What;
use crate::service::Sys;

/// Ticks that pass for a millisecond here: so that what takes too long is found to within a run.
const HASTE: u64 = 50;
const PAGE: usize = PAGE_SIZE as usize;

/// The kernel; and the command whose answer is made up.
struct OnKernel<'a, 'b>(&'a Sys<'b>, &'a Cell<u16>);

impl OnKernel<'_, '_> {
    /// Whether it claims something this time.
    fn claims(&self) -> bool {
        let world = self.0.world;
        let claims = world.config.lazy && world.rng.chance(1, 2);
        world.silicon.failed.set(world.silicon.failed.get() || claims);
        claims
    }
}

impl Kernel for OnKernel<'_, '_> {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        if R::OP == WriteBackInvalidate::OP && self.claims() {
            // Ticket 0 is always done.
            return R::Reply::decode(&[0; 8]).map_err(|_| Status::Malformed);
        }
        self.0.ask(request)
    }

    fn lend<R: Request>(&mut self, request: &R, pages: &mut Lent, count: usize) -> Result<R::Reply, Status> {
        let (sys, world) = (self.0, self.0.world);
        let words = request.encode();
        if R::OP == MailboxRing::OP && words[1] == u64::from(mailbox::DF_FLUSH) && self.claims() {
            self.1.set(mailbox::DF_FLUSH);
            let _ = sys.ring(sys.slot, doorbell::INTERRUPT);
            return R::Reply::decode(&[0; 8]).map_err(|_| Status::Malformed);
        }
        let claimed = self.1.take();
        if R::OP == MailboxTake::OP && claimed != 0 {
            let (state, vm) = (MailboxState::Done, VmId::default());
            let report = MailboxReport { state, command: claimed, status: 0, vm };
            return R::Reply::decode(&report.encode()).map_err(|_| Status::Malformed);
        }
        let composed = |page: usize| (sys.slot, COMPOSED.start + page as u64);
        if !sys.stopped() {
            for (page, bytes) in pages.0.chunks_exact(PAGE).take(count).enumerate() {
                let own = &mut *world.bytes.borrow_mut();
                own.entry(composed(page)).or_insert_with(|| Box::new([0; PAGE])).copy_from_slice(bytes);
            }
        }
        let lease = Lease { page: VPage(COMPOSED.start), pages: count as u64, write: true };
        let answer = sys.ask_lending(request, Some(lease));
        if !sys.stopped() {
            for (page, bytes) in pages.0.chunks_exact_mut(PAGE).take(count).enumerate() {
                if let Some(own) = world.bytes.borrow().get(&composed(page)) {
                    bytes.copy_from_slice(&own[..]);
                }
            }
        }
        answer
    }

    fn bell(&mut self, client: ServiceId) {
        let _ = self.0.ring(client.index(), doorbell::TICKET);
    }

    fn again(&mut self) -> bool {
        self.0.ring(self.0.slot, doorbell::TICKET).is_ok()
    }

    fn note(&mut self, note: Note) {
        let (text, number) = match note {
            Note::WroteBack => ("sev-firmware: WBINVD everywhere", 0),
            Note::Late(cpu) => ("sev-firmware: no WBINVD of", cpu.0.into()),
            Note::Answered { command, status, .. } => {
                ("sev-firmware: answered", u64::from(command) << 16 | u64::from(status))
            }
            Note::LeakedAsid(asid) => ("sev-firmware: leaks ASID", asid.into()),
            Note::Platform { .. } => ("sev-firmware: knows the platform", 0),
            Note::LeakedPage => ("sev-firmware: leaks a page", 0),
            Note::Dead { command } => ("sev-firmware: the processor is dead", command.into()),
        };
        if !self.0.stopped() {
            // From then on what it took for lost may still come.
            let silicon = &self.0.world.silicon;
            silicon.failed.set(silicon.failed.get() || matches!(note, Note::Late(_) | Note::Dead { .. }));
            self.0.world.note(0, What::Said(text, number));
        }
    }
}

/// What a client lent.
struct Leased<'a, 'b>(&'a Sys<'b>, Lease);

impl Leased<'_, '_> {
    fn place(&self, offset: usize) -> Option<(usize, u64)> {
        let (from, lease) = self.0.world.lent.borrow().get(&self.0.slot).copied()?;
        Some((from, lease.page.0 + (offset / PAGE) as u64))
    }
}

impl Pages for Leased<'_, '_> {
    fn count(&self) -> u64 {
        self.1.pages
    }

    fn writable(&self) -> bool {
        self.1.write
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        into.fill(0);
        self.place(offset).is_some()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let Some(place) = self.place(offset).filter(|_| bytes.len() <= PAGE - offset % PAGE) else { return false };
        let mut pages = self.0.world.bytes.borrow_mut();
        let page = pages.entry(place).or_insert_with(|| Box::new([0; PAGE]));
        page[offset % PAGE..][..bytes.len()].copy_from_slice(bytes);
        true
    }
}

struct Image<'a, 'b> {
    sys: &'a Sys<'b>,
    claimed: Cell<u16>,
    firmware: Box<Firmware>,
}

impl Image<'_, '_> {
    fn now(&self) -> Tsc {
        Tsc(self.sys.world.now.get())
    }
}

impl Server for Image<'_, '_> {
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let mut leased = lease.map(|lease| Leased(self.sys, lease));
        let pages = leased.as_mut().map(|leased| leased as &mut dyn Pages);
        let now = self.now();
        self.firmware.handle(sender, words, pages, now, &mut OnKernel(self.sys, &self.claimed))
    }

    fn doorbell(&mut self, bits: u64) {
        let now = self.now();
        self.firmware.doorbell(bits, now, &mut OnKernel(self.sys, &self.claimed));
    }
}

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let mut image = Image { sys, claimed: Cell::new(0), firmware: Box::default() };
    let platform = [sys.world.manifest.memory as u16, sys.world.manifest.notifier as u16];
    if let Ok(machine) = sys.ask(&MachineInfo {}) {
        let machine = caisson_proto::kernel::Machine { tsc_khz: HASTE, ..machine };
        let now = image.now();
        image.firmware.start(&machine, &platform, now, &mut OnKernel(sys, &image.claimed));
    }
    serve(sys, &mut image);
}
