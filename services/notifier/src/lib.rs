//! notifier: decides which write-back is owed, and when.
//!
//! A batch of a plain VM owes nothing; `WriteBack` is what settles it, and the kernel frees its frames at once. For
//! encrypted VMs the kernel sends the instruction to the CPUs that owe it, and rings when the last has answered.
//!
//! That is dear, and nobody needs the frames yet: so such a batch is held back until memory [`Want`]s frames. Meanwhile
//! others join it, and flushes for other batches pay part of it. Then those are written back first that give most
//! frames for each CPU that has to flush. The kernel knows every open batch, so notices that were lost, or read by a
//! predecessor, are made up for by enumerating: at the start, when asked to
//! [`Settle`](caisson_proto::notifier::Settle), and when a ticket makes room for what was refused.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

use caisson_proto::abi::Status;
use caisson_proto::addr::{BatchId, Ticket, VmId};
use caisson_proto::kernel::{BatchInfo, BatchReport, TicketCheck, VmKind, WriteBack};
use caisson_proto::memory::Reclaimed;
use caisson_proto::notifier::{NoticesOf, NotifierCall, NotifierReport, Want};
use caisson_proto::wire::{Done, Reply, Request, Words};
use heapless::Vec;
use zerocopy::FromBytes;

mod counts;

use counts::Counts;

/// Tickets that are waited for at the most; what exceeds them is found again by enumeration.
pub const TICKETS: usize = 64;
/// Batches that are held back at the most. The others of the kernel's 64 are for plain VMs and for recycling ASIDs.
pub const HELD: usize = 48;

/// The kernel.
pub trait Kernel {
    /// Asks for a kernel operation.
    ///
    /// # Errors
    /// What the kernel refused it for.
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status>;
}

/// The service's state.
#[derive(Debug)]
pub struct Notifier {
    /// Write-backs under way.
    waiting: Vec<(BatchId, Ticket, VmId), TICKETS>,
    /// A write-back was refused because too many are under way.
    refused: bool,
    notices: u64,
    settled: u64,
    owed_nothing: u64,
    counts: Counts,
}

impl Notifier {
    /// Nothing pending.
    pub const fn new() -> Self {
        let counts = Counts::new();
        Self { waiting: Vec::new(), refused: false, notices: 0, settled: 0, owed_nothing: 0, counts }
    }

    /// Settles every batch that is open.
    pub fn settle(&mut self, kernel: &mut impl Kernel) {
        self.check_tickets(kernel);
        let mut slot = 0;
        while let Some(report) = next_open(slot, kernel) {
            self.write_back(&report, kernel);
            slot = report.next;
        }
    }

    /// Frames are wanted.
    fn want(&mut self, frames: u64, kernel: &mut impl Kernel) {
        self.check_tickets(kernel);
        let (mut coming, mut slot) = (0u64, 0);
        while let Some(report) = next_open(slot, kernel) {
            if self.waits_for(report.batch) {
                coming = coming.saturating_add(report.frames);
            }
            slot = report.next;
        }
        // As many as there can be batches.
        for _ in 0..TICKETS {
            let Some((report, _)) = self.cheapest(kernel).filter(|_| coming < frames) else { return };
            coming = coming.saturating_add(report.frames);
            if !self.write_back(&report, kernel) {
                return;
            }
        }
    }

    /// Of the batches that are held back, the one that gives most frames for each CPU that has to flush; and how many there are.
    fn cheapest(&self, kernel: &mut impl Kernel) -> Option<(BatchReport, usize)> {
        let (mut best, mut count, mut slot) = (None::<BatchReport>, 0, 0);
        while let Some(report) = next_open(slot, kernel) {
            slot = report.next;
            if self.waits_for(report.batch) {
                continue;
            }
            count += 1;
            let dearer = |best: &BatchReport| {
                u128::from(report.owed) * u128::from(best.frames) < u128::from(best.owed) * u128::from(report.frames)
            };
            if best.as_ref().is_none_or(dearer) {
                best = Some(report);
            }
        }
        best.zip(Some(count))
    }

    fn waits_for(&self, batch: BatchId) -> bool {
        self.waiting.iter().any(|(waiting, ..)| *waiting == batch)
    }

    /// A message of memory's ring. False if it is none.
    pub fn reclaimed(&mut self, message: &[u8], kernel: &mut impl Kernel) -> bool {
        let Ok(reclaimed) = Reclaimed::read_from_bytes(message) else { return false };
        self.notices += 1;
        let batch = BatchId(reclaimed.batch);
        let vm = VmId::from_bits(reclaimed.vm);
        self.counts.count(vm, |counts| counts.notices += 1);
        // One batch serves many reclaims; whoever settled it first settled all.
        if let Ok(report) = kernel.ask(&BatchInfo { slot: (batch.0 & 0xffff) as u16 })
            && report.batch == batch
        {
            let held = report.kind != VmKind::Plain && report.owed != 0 && !self.waits_for(batch);
            if !held {
                self.write_back(&report, kernel);
            } else if let Some((report, _)) = self.cheapest(kernel).filter(|(_, count)| *count > HELD) {
                self.write_back(&report, kernel);
            }
        } else {
            self.counts.count(vm, |counts| counts.spurious += 1);
        }
        true
    }

    /// The doorbell of a ticket rang.
    pub fn ticket(&mut self, kernel: &mut impl Kernel) {
        self.check_tickets(kernel);
        if core::mem::take(&mut self.refused) {
            self.settle(kernel);
        }
    }

    /// Answers one request.
    pub fn handle(&mut self, words: &Words, kernel: &mut impl Kernel) -> (Status, Words) {
        match NotifierCall::decode(words) {
            Ok(NotifierCall::Settle(_)) => {
                self.settle(kernel);
                (Status::Ok, Done {}.encode())
            }
            Ok(NotifierCall::Want(Want { frames })) => {
                self.want(frames, kernel);
                (Status::Ok, Done {}.encode())
            }
            Ok(NotifierCall::Report(_)) => {
                let report = NotifierReport {
                    notices: self.notices,
                    settled: self.settled,
                    owed_nothing: self.owed_nothing,
                    waiting: self.waiting.len() as u64,
                };
                (Status::Ok, report.encode())
            }
            Ok(NotifierCall::NoticesOf(NoticesOf { vm })) => {
                self.check_tickets(kernel);
                (Status::Ok, self.counts.of(vm).encode())
            }
            Err(_) => (Status::Malformed, [0; 8]),
        }
    }

    /// Also for a batch that is waited for: it may have taken in frames since, which further CPUs owe for, and those
    /// were not asked yet. False if there are too many under way.
    fn write_back(&mut self, report: &BatchReport, kernel: &mut impl Kernel) -> bool {
        let batch = report.batch;
        match kernel.ask(&WriteBack { batch }) {
            Ok(accepted) if accepted.ticket == Ticket(0) => {
                self.settled += 1;
                self.owed_nothing += u64::from(report.kind == VmKind::Plain);
                self.counts.count(report.vm, |counts| counts.owed_nothing += 1);
            }
            Ok(accepted) => match self.waiting.iter_mut().find(|(waiting, ..)| *waiting == batch) {
                Some((_, ticket, _)) => *ticket = accepted.ticket,
                None => {
                    self.counts.count(report.vm, |counts| counts.asked += 1);
                    // A place too few only means that it isn't counted when it is settled.
                    let _ = self.waiting.push((batch, accepted.ticket, report.vm));
                }
            },
            Err(Status::Busy) => {
                self.refused = true;
                return false;
            }
            // Settled meanwhile by another CPU's flush.
            Err(_) => {}
        }
        true
    }

    fn check_tickets(&mut self, kernel: &mut impl Kernel) {
        let mut done = 0;
        let counts = &mut self.counts;
        self.waiting.retain(|&(_, ticket, vm)| {
            let open = kernel.ask(&TicketCheck { ticket }).is_ok_and(|state| !state.done);
            if !open {
                done += 1;
                counts.count(vm, |counts| counts.done += 1);
            }
            open
        });
        self.settled += done;
    }
}

/// The open batch in a slot or the next that has one.
fn next_open(slot: u16, kernel: &mut impl Kernel) -> Option<BatchReport> {
    // A table that doesn't advance would never end.
    kernel.ask(&BatchInfo { slot }).ok().filter(|report| report.next > slot)
}

impl Default for Notifier {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
