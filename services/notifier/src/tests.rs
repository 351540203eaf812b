//! notifier against a kernel that keeps batches.

use caisson_proto::addr::VmId;
use caisson_proto::kernel::{Accepted, BatchReport, KernelCall, TicketState};
use caisson_proto::notifier::{Report, Settle};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

#[derive(Clone, Copy)]
struct Batch {
    id: u32,
    kind: VmKind,
    owed: u16,
    ticket: u64,
}

#[derive(Default)]
struct Fake {
    batches: [Option<Batch>; 8],
    next: u32,
    tickets: u64,
    asked: u32,
}

impl Fake {
    fn open(&mut self, slot: usize, kind: VmKind) -> BatchId {
        self.next += 1;
        let id = slot as u32 | self.next << 16;
        let owed = if kind == VmKind::Plain { 0 } else { 3 };
        self.batches[slot] = Some(Batch { id, kind, owed, ticket: 0 });
        BatchId(id)
    }

    fn acknowledge(&mut self) {
        for place in &mut self.batches {
            if place.is_some_and(|batch| batch.ticket != 0) {
                *place = None;
            }
        }
    }

    fn serve(&mut self, words: &Words) -> Result<Words, Status> {
        Ok(match KernelCall::decode(words).unwrap() {
            KernelCall::BatchInfo(BatchInfo { slot }) => {
                let (at, batch) = (usize::from(slot)..8)
                    .find_map(|at| self.batches[at].map(|batch| (at, batch)))
                    .ok_or(Status::NotFound)?;
                BatchReport {
                    batch: BatchId(batch.id),
                    vm: VmId::new(0, 0),
                    kind: batch.kind,
                    frames: 1,
                    owed: batch.owed,
                    next: at as u16 + 1,
                }
                .encode()
            }
            KernelCall::WriteBack(WriteBack { batch }) => {
                self.asked += 1;
                let place = &mut self.batches[(batch.0 & 0xffff) as usize];
                let open = place.as_mut().filter(|open| open.id == batch.0).ok_or(Status::NotFound)?;
                if open.owed == 0 {
                    *place = None;
                    return Ok(Accepted { ticket: Ticket(0) }.encode());
                }
                self.tickets += 1;
                open.ticket = self.tickets;
                Accepted { ticket: Ticket(self.tickets) }.encode()
            }
            KernelCall::TicketCheck(TicketCheck { ticket }) => {
                let open = self.batches.iter().flatten().any(|batch| batch.ticket == ticket.0);
                TicketState { done: !open }.encode()
            }
            other => panic!("{other:?} isn't notifier's"),
        })
    }
}

impl Kernel for Fake {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        self.serve(&request.encode()).map(|words| R::Reply::decode(&words).unwrap())
    }
}

fn notice(batch: BatchId) -> Reclaimed {
    Reclaimed { vm: 0, batch: batch.0, gfn: 0, pages: 1 }
}

fn report(notifier: &mut Notifier, kernel: &mut Fake) -> NotifierReport {
    let (status, words) = notifier.handle(&Report {}.encode(), kernel);
    assert_eq!(status, Status::Ok);
    NotifierReport::decode(&words).unwrap()
}

#[test]
fn a_plain_batch_is_settled_at_once() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    let batch = kernel.open(3, VmKind::Plain);
    assert!(notifier.reclaimed(notice(batch).as_bytes(), &mut kernel));
    // The same batch took in a second reclaim before it was settled.
    assert!(notifier.reclaimed(notice(batch).as_bytes(), &mut kernel));
    let report = report(&mut notifier, &mut kernel);
    assert_eq!((report.notices, report.settled, report.owed_nothing, report.waiting), (2, 1, 1, 0));
    assert_eq!(kernel.asked, 1);
}

#[test]
fn an_encrypted_batch_is_asked_for_with_each_notice_and_waited_for_once() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    let batch = kernel.open(0, VmKind::Sev);
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    assert_eq!((kernel.asked, report(&mut notifier, &mut kernel).waiting), (1, 1));
    // It took in a second reclaim, and another CPU owes for that.
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    notifier.settle(&mut kernel);
    assert_eq!((kernel.asked, report(&mut notifier, &mut kernel).waiting), (3, 1));
    kernel.acknowledge();
    notifier.ticket(&mut kernel);
    let report = report(&mut notifier, &mut kernel);
    assert_eq!((report.settled, report.owed_nothing, report.waiting), (1, 0, 0));
}

#[test]
fn notices_that_are_none_are_refused() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    assert!(!notifier.reclaimed(&[0; 23], &mut kernel));
    assert!(notifier.reclaimed(notice(BatchId(0xffff_ffff)).as_bytes(), &mut kernel));
    assert_eq!(notifier.handle(&[9; 8], &mut kernel).0, Status::Malformed);
    assert_eq!(kernel.asked, 0);
}

proptest! {
    /// Whatever notices are lost and whenever notifier is restarted: after one look every batch is on its way.
    #[test]
    fn nothing_stays_open(steps in prop::collection::vec((0..8usize, 0..4u8, any::<bool>(), any::<bool>()), 0..60)) {
        let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
        for (slot, kind, lost, restart) in steps {
            if kernel.batches[slot].is_none() {
                let batch = kernel.open(slot, VmKind::ALL[usize::from(kind)]);
                if !lost {
                    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
                }
            }
            if restart {
                notifier = Notifier::new();
                notifier.settle(&mut kernel);
            }
        }
        prop_assert_eq!(notifier.handle(&Settle {}.encode(), &mut kernel).0, Status::Ok);
        kernel.acknowledge();
        notifier.ticket(&mut kernel);
        prop_assert!(kernel.batches.iter().all(Option::is_none));
        prop_assert_eq!(report(&mut notifier, &mut kernel).waiting, 0);
    }
}
