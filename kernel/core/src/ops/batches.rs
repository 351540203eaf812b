//! Operations on batches: write-back and what it pays for.

use super::{Answer, Call, ok};
use crate::prelude::*;

impl<M: Machine> Call<'_, M> {
    pub(super) fn invalidate_begin(&self, request: &InvalidateBegin) -> Answer {
        let (slot, _) = vms::find(&self.vms, request.vm)?;
        self.tables().of(slot)?.2.invalidation.begin(request.start, request.end)?;
        ok(Done {})
    }

    pub(super) fn invalidate_end(&self, request: &InvalidateEnd) -> Answer {
        let (slot, _) = vms::find(&self.vms, request.vm)?;
        self.tables().of(slot)?.2.invalidation.end()?;
        ok(Done {})
    }

    pub(super) fn batch_info(&self, request: &BatchInfo) -> Answer {
        let tables = self.tables();
        let mut rest =
            (request.slot..MAX_BATCHES as u16).filter_map(|slot| tables.batches.get(slot.into()).zip(Some(slot)));
        let (Open { id, vm, kind, frames, owed }, slot) = rest.next().ok_or(Status::NotFound)?;
        ok(BatchReport { batch: id, vm, kind, frames, owed, next: slot + 1 })
    }

    /// A batch that nobody owes is free at once. Else every CPU that owes is asked; the ticket is done when the
    /// last has answered.
    pub(super) fn write_back(&self, request: &WriteBack) -> Answer {
        let mut tables = self.tables();
        let owed = tables.batches.owed(request.batch).ok_or(Status::NotFound)?;
        if owed.iter().all(|word| *word == 0) {
            let open = tables.batches.settle(request.batch)?;
            self.paid(&mut tables, &open);
            return ok(Accepted { ticket: Ticket(0) });
        }
        let ticket = tables.tickets + 1;
        tables.open_tickets.push((ticket, request.batch)).map_err(|_| Status::Busy)?;
        tables.tickets = ticket;
        drop(tables);
        let owes = |index: &usize| owed.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1);
        for index in (0..self.cpu_count()).filter(owes) {
            if let Some(cpu) = self.cpus.get(index) {
                cpu.flush_wanted.swap(true);
            }
            if index != usize::from(self.local.cpu.0) {
                self.machine.interrupt_cpu(CpuId(index as u16));
            }
        }
        self.flush_if_wanted();
        ok(Accepted { ticket: Ticket(ticket) })
    }

    pub(super) fn ticket_check(&self, request: &TicketCheck) -> Answer {
        let tables = self.tables();
        ensure(request.ticket.0 <= tables.tickets, Status::NotFound)?;
        ok(TicketState { done: !tables.open_tickets.iter().any(|(ticket, _)| *ticket == request.ticket.0) })
    }
}

impl<M: Machine> Here<'_, M> {
    /// Executes the write-back that others asked of this CPU, clears its row and pays. With interrupts off; never
    /// while this CPU holds the table lock.
    pub fn flush_if_wanted(self) {
        let cpu = usize::from(self.local.cpu.0);
        if !self.shared().flush_wanted.swap(false) {
            return;
        }
        self.machine.write_back();
        self.shared().ran.store(0, Ordering::SeqCst);
        self.machine.log(Event::WroteBack(self.local.cpu));
        let mut tables = self.tables();
        let mut paid = heapless::Vec::<Open, MAX_BATCHES>::new();
        tables.batches.pay(cpu, |open| {
            // There are no more batches than places.
            let _ = paid.push(open);
        });
        paid.iter().for_each(|open| self.paid(&mut tables, open));
    }

    /// A batch is closed: its frames are free, its tickets done, and whoever waits hears of it.
    fn paid(self, tables: &mut Tables, open: &Open) {
        tables.frames.paid(open.frames);
        tables.open_tickets.retain(|(_, of)| *of != open.id);
        self.machine.log(Event::BatchPaid(open.id, open.frames));
        self.ring_all(Caps::FRAMES | Caps::WRITEBACK, doorbell::TICKET);
    }
}
