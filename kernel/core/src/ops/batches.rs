//! Operations on batches: write-back and what it pays for.

use core::sync::atomic::Ordering;

use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::{BatchId, CpuId, Ticket};
use caisson_proto::kernel::{
    Accepted, BatchInfo, BatchReport, InvalidateBegin, InvalidateEnd, TicketCheck, TicketState, WriteBack,
};
use caisson_proto::wire::Done;

use super::{Answer, Call, ok};
use crate::batches::{MAX_BATCHES, Open};
use crate::event::Event;
use crate::here::Here;
use crate::kernel::Tables;
use crate::machine::Machine;
use crate::vms;

impl<M: Machine> Call<'_, M> {
    pub(super) fn invalidate_begin(&self, request: &InvalidateBegin) -> Answer {
        let (slot, _) = vms::find(&self.here.kernel.vms, request.vm)?;
        let mut tables = self.here.tables();
        let books = tables.books.get_mut(slot).ok_or(Status::Dead)?;
        books.invalidation.begin(request.start, request.end)?;
        ok(Done {})
    }

    pub(super) fn invalidate_end(&self, request: &InvalidateEnd) -> Answer {
        let (slot, _) = vms::find(&self.here.kernel.vms, request.vm)?;
        let mut tables = self.here.tables();
        tables.books.get_mut(slot).ok_or(Status::Dead)?.invalidation.end()?;
        ok(Done {})
    }

    pub(super) fn batch_info(&self, request: &BatchInfo) -> Answer {
        let found = (usize::from(request.slot)..MAX_BATCHES)
            .find_map(|slot| self.here.batches.get(slot).map(|open| (slot, open)));
        let (slot, open) = found.ok_or(Status::NotFound)?;
        ok(BatchReport {
            batch: open.id,
            vm: open.vm,
            kind: open.kind,
            frames: open.frames,
            owed: open.owed,
            next: slot as u16 + 1,
        })
    }

    /// A batch that nobody owes is free at once. Else every CPU that owes is asked; the ticket is done when the
    /// last has answered.
    pub(super) fn write_back(&self, request: &WriteBack) -> Answer {
        let mut tables = self.here.tables();
        let owed = self.here.batches.owed(request.batch).ok_or(Status::NotFound)?;
        if owed.iter().all(|word| *word == 0) {
            let open = self.here.batches.settle(request.batch)?;
            self.here.paid(&mut tables, &open);
            return ok(Accepted { ticket: Ticket(0) });
        }
        let ticket = tables.tickets + 1;
        tables.open_tickets.push((ticket, request.batch)).map_err(|_| Status::Busy)?;
        tables.tickets = ticket;
        drop(tables);
        for (index, cpu) in self.here.cpus.iter().enumerate().take(self.here.cpu_count()) {
            if owed.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1) {
                cpu.flush_wanted.store(1, Ordering::SeqCst);
                if index == usize::from(self.here.local.cpu.0) {
                    self.here.flush_if_wanted();
                } else {
                    self.here.machine.interrupt_cpu(CpuId(index as u16));
                }
            }
        }
        ok(Accepted { ticket: Ticket(ticket) })
    }

    pub(super) fn ticket_check(&self, request: &TicketCheck) -> Answer {
        let tables = self.here.tables();
        if request.ticket.0 > tables.tickets {
            return Err(Status::NotFound);
        }
        ok(TicketState { done: !tables.open_tickets.iter().any(|(ticket, _)| *ticket == request.ticket.0) })
    }
}

impl<M: Machine> Here<'_, M> {
    /// Executes the write-back that others asked of this CPU, clears its row and pays. With interrupts off; never
    /// while this CPU holds the table lock.
    pub fn flush_if_wanted(&self) {
        let Some(shared) = self.cpus.get(usize::from(self.local.cpu.0)) else { return };
        if shared.flush_wanted.swap(0, Ordering::SeqCst) == 0 {
            return;
        }
        self.machine.write_back();
        shared.ran.store(0, Ordering::SeqCst);
        self.machine.log(Event::WroteBack(self.local.cpu));
        let mut tables = self.tables();
        let mut paid = heapless::Vec::<Open, MAX_BATCHES>::new();
        self.batches.pay(usize::from(self.local.cpu.0), |open| {
            // There are no more batches than places.
            let _ = paid.push(open);
        });
        for open in &paid {
            self.paid(&mut tables, open);
        }
    }

    /// A batch is closed: its frames are free, its tickets done, and whoever waits hears of it.
    fn paid(&self, tables: &mut Tables, open: &Open) {
        if let Some(frames) = &tables.frames {
            frames.paid(open.frames);
        }
        let batch: BatchId = open.id;
        tables.open_tickets.retain(|(_, of)| *of != batch);
        self.machine.log(Event::BatchPaid(batch, open.frames));
        use caisson_proto::kernel::Caps;
        for slot in 0..self.service_count() {
            if self.service(slot).caps().intersects(Caps::FRAMES.union(Caps::WRITEBACK)) {
                self.ring(slot, doorbell::TICKET);
            }
        }
    }
}
