//! Operations on batches: write-back and what it pays for.

use super::{Answer, Call, ok};
use crate::prelude::*;

impl<M: Machine> Call<'_, M> {
    pub(super) fn invalidate_begin(&self, request: &InvalidateBegin) -> Answer {
        let _no_commit = self.tables();
        vms::find(&self.vms, request.vm)?.1.invalidation.begin(request.start, request.end)?;
        ok(Done {})
    }

    pub(super) fn invalidate_end(&self, request: &InvalidateEnd) -> Answer {
        vms::find(&self.vms, request.vm)?.1.invalidation.end()?;
        ok(Done {})
    }

    pub(super) fn batch_info(&self, request: &BatchInfo) -> Answer {
        let tables = self.tables();
        let rest =
            (request.slot..MAX_BATCHES as u16).filter_map(|slot| tables.batches.get(slot.into()).zip(Some(slot)));
        // What can't be paid yet isn't open to them.
        let mut rest = rest.filter(|(batch, _)| batch.payable != Payable::Never);
        let (&Batch { id, vm, kind, frames, owed, .. }, slot) = rest.next().ok_or(Status::NotFound)?;
        ok(BatchReport { batch: id, vm, kind, frames, owed: owed.iter().count() as u16, next: slot + 1 })
    }

    /// A batch that nobody owes is free at once. Else every CPU that owes is asked; the ticket is done when the
    /// last has answered.
    pub(super) fn write_back(&self, request: &WriteBack) -> Answer {
        let mut tables = self.tables();
        let &Batch { owed, payable, .. } = tables.batches.find(request.batch).ok_or(Status::NotFound)?;
        if owed == CpuSet::EMPTY {
            let open = tables.batches.settle(request.batch)?;
            self.paid(&mut tables, &open);
            return ok(Accepted { ticket: Ticket(0) });
        }
        self.ask_flush(tables, request.batch, &owed, payable == Payable::Invalidate)
    }

    pub(super) fn write_back_invalidate(&self, _: &WriteBackInvalidate) -> Answer {
        let mut tables = self.tables();
        // Without a ticket nobody would be asked, and what was opened would be owed for ever.
        ensure(!tables.open_tickets.is_full(), Status::Busy)?;
        let all = CpuSet::of((0..self.cpu_count() as u16).map(CpuId));
        let batch = tables.batches.open(VmId::default(), VmKind::Plain, &all, Payable::Invalidate)?;
        self.ask_flush(tables, batch, &all, true)
    }

    /// Gives a ticket and asks the CPUs that owe.
    fn ask_flush(&self, mut tables: MutexGuard<Tables>, batch: BatchId, owed: &CpuSet, invalidate: bool) -> Answer {
        let ticket = tables.tickets + 1;
        tables.open_tickets.push((ticket, batch)).map_err(|_| Status::Busy)?;
        tables.tickets = ticket;
        for shared in owed.iter().filter_map(|cpu| self.cpus.get(usize::from(cpu.0))) {
            if invalidate {
                shared.invalidate_wanted.swap(true);
            }
            shared.flush_wanted.swap(true);
        }
        drop(tables);
        owed.iter().filter(|cpu| *cpu != self.local.cpu).for_each(|cpu| self.machine.interrupt_cpu(cpu));
        self.flush_if_wanted();
        ok(Accepted { ticket: Ticket(ticket) })
    }

    pub(super) fn ticket_check(&self, request: &TicketCheck) -> Answer {
        let tables = self.tables();
        ensure(request.ticket.0 <= tables.tickets, Status::NotFound)?;
        let open = tables.open_tickets.iter().find(|(ticket, _)| *ticket == request.ticket.0);
        let late = open.and_then(|(_, batch)| tables.batches.find(*batch)?.owed.iter().next());
        ok(TicketState { done: open.is_none(), late: late.unwrap_or_default() })
    }
}

impl<M: Machine> Here<'_, M> {
    /// Executes the write-back that others asked of this CPU, clears its row and pays. With interrupts off; never
    /// while this CPU holds the table lock.
    pub fn flush_if_wanted(self) {
        let (shared, mut invalidated) = (self.shared(), false);
        while shared.flush_wanted.swap(false) {
            let invalidate = shared.invalidate_wanted.swap(false);
            self.machine.write_back(invalidate);
            shared.ran.store(0, Ordering::SeqCst);
            shared.wbinvds.fetch_add(invalidate.into(), Ordering::SeqCst);
            self.machine.log(Event::WroteBack(self.local.cpu, invalidate));
            invalidated |= invalidate;
            let mut tables = self.tables();
            // Who asked since then wants what it opened since then paid by the next one.
            while !shared.flush_wanted.get()
                && let Some(open) = tables.batches.pay(self.local.cpu, invalidated)
            {
                self.paid(&mut tables, &open);
            }
        }
    }

    /// A batch is closed: its frames are free, its tickets done, and whoever waits hears of it.
    fn paid(self, tables: &mut Tables, open: &Batch) {
        tables.frames.paid(open.frames);
        let tickets =
            tables.open_tickets.iter().filter(|(_, of)| open.payable == Payable::Invalidate && *of == open.id);
        tables.asids.flushed(tickets.map(|(ticket, _)| *ticket).max().unwrap_or(0));
        tables.open_tickets.retain(|(_, of)| *of != open.id);
        self.machine.log(Event::BatchPaid(open.id, open.frames));
        self.ring_all(Caps::FRAMES | Caps::WRITEBACK | Caps::FIRMWARE, doorbell::TICKET);
    }
}
