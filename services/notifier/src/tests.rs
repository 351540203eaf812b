//! notifier against a kernel that keeps batches.

use caisson_proto::addr::{CpuId, VmId};
use caisson_proto::kernel::{Accepted, BatchReport, KernelCall, TicketState};
use caisson_proto::notifier::{NoticesOf, Report, Settle, VmNotices, Want};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

#[derive(Clone, Copy)]
struct Batch {
    id: u32,
    kind: VmKind,
    frames: u64,
    owed: u16,
    ticket: u64,
}

#[derive(Default)]
struct Fake {
    batches: std::vec::Vec<Option<Batch>>,
    next: u32,
    tickets: u64,
    asked: u32,
}

impl Fake {
    fn open(&mut self, slot: usize, kind: VmKind) -> BatchId {
        self.next += 1;
        let id = slot as u32 | self.next << 16;
        let owed = if kind == VmKind::Plain { 0 } else { 3 };
        self.batches.resize(self.batches.len().max(slot + 1), None);
        self.batches[slot] = Some(Batch { id, kind, frames: 1, owed, ticket: 0 });
        BatchId(id)
    }

    /// An encrypted VM's, with so many frames for which so many CPUs owe.
    fn owing(&mut self, slot: usize, frames: u64, owed: u16) -> BatchId {
        let id = self.open(slot, VmKind::Sev);
        self.batches[slot] = self.batches[slot].map(|batch| Batch { frames, owed, ..batch });
        id
    }

    /// Slots whose batches were asked for.
    fn under_way(&self) -> std::vec::Vec<usize> {
        let asked = |slot: &usize| self.batches[*slot].is_some_and(|batch| batch.ticket != 0);
        (0..self.batches.len()).filter(asked).collect()
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
                let (at, batch) = (usize::from(slot)..self.batches.len())
                    .find_map(|at| self.batches[at].map(|batch| (at, batch)))
                    .ok_or(Status::NotFound)?;
                BatchReport {
                    batch: BatchId(batch.id),
                    vm: VmId::new(0, 0),
                    kind: batch.kind,
                    frames: batch.frames,
                    owed: batch.owed,
                    next: at as u16 + 1,
                }
                .encode()
            }
            KernelCall::WriteBack(WriteBack { batch }) => {
                self.asked += 1;
                let place = self.batches.get_mut((batch.0 & 0xffff) as usize).ok_or(Status::NotFound)?;
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
                TicketState { done: !open, late: CpuId::default() }.encode()
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

fn want(notifier: &mut Notifier, kernel: &mut Fake, frames: u64) {
    assert_eq!(notifier.handle(&Want { frames }.encode(), kernel).0, Status::Ok);
}

#[test]
fn an_encrypted_batch_waits_until_frames_are_wanted_and_is_waited_for_once() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    let batch = kernel.open(0, VmKind::Sev);
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    assert_eq!((kernel.asked, report(&mut notifier, &mut kernel).waiting), (0, 0));
    want(&mut notifier, &mut kernel, 1);
    assert_eq!((kernel.asked, report(&mut notifier, &mut kernel).waiting), (1, 1));
    // It took in a second reclaim, and another CPU owes for that: who was asked doesn't pay for it.
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    notifier.settle(&mut kernel);
    assert_eq!((kernel.asked, report(&mut notifier, &mut kernel).waiting), (3, 1));
    kernel.acknowledge();
    notifier.ticket(&mut kernel);
    let report = report(&mut notifier, &mut kernel);
    assert_eq!((report.settled, report.owed_nothing, report.waiting), (1, 0, 0));
}

#[test]
fn those_that_give_most_for_a_flush_come_first_and_no_more_than_are_wanted() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    for (slot, (frames, owed)) in [(100, 10), (300, 10), (10, 2), (200, 8)].into_iter().enumerate() {
        let batch = kernel.owing(slot, frames, owed);
        notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    }
    want(&mut notifier, &mut kernel, 250);
    assert_eq!(kernel.under_way(), [1]);
    // What is under way counts.
    want(&mut notifier, &mut kernel, 300);
    assert_eq!(kernel.under_way(), [1]);
    want(&mut notifier, &mut kernel, 301);
    assert_eq!(kernel.under_way(), [1, 3]);
    want(&mut notifier, &mut kernel, u64::MAX);
    assert_eq!(kernel.under_way(), [0, 1, 2, 3]);
    assert_eq!(kernel.asked, 4, "each is asked for once");
}

#[test]
fn others_have_room_beside_what_is_held_back() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    for slot in 0..HELD {
        let batch = kernel.owing(slot, 10 + slot as u64, 4);
        notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    }
    assert!(kernel.under_way().is_empty());
    let batch = kernel.owing(HELD, 1, 4);
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    assert_eq!(kernel.under_way(), [HELD - 1]);
    // One that nobody owes anything for needs no room.
    let batch = kernel.owing(HELD + 1, 1, 0);
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    assert!(kernel.batches[HELD + 1].is_none());
}

#[test]
fn notices_that_are_none_are_refused() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    assert!(!notifier.reclaimed(&[0; 23], &mut kernel));
    assert!(notifier.reclaimed(notice(BatchId(0xffff_ffff)).as_bytes(), &mut kernel));
    assert_eq!(notifier.handle(&[9; 8], &mut kernel).0, Status::Malformed);
    assert_eq!(kernel.asked, 0);
}

fn of_vm(notifier: &mut Notifier, kernel: &mut Fake, vm: VmId) -> [u64; 5] {
    let (status, words) = notifier.handle(&NoticesOf { vm }.encode(), kernel);
    assert_eq!(status, Status::Ok);
    let VmNotices { notices, spurious, asked, done, owed_nothing } = VmNotices::decode(&words).unwrap();
    [notices, spurious, asked, done, owed_nothing]
}

#[test]
fn what_is_done_for_a_vm_is_counted_for_it_alone() {
    let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
    let (vm, next) = (VmId::new(0, 0), VmId::new(0, 1));
    let batch = kernel.open(0, VmKind::Plain);
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    // It is settled: this one finds nothing.
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    assert_eq!(of_vm(&mut notifier, &mut kernel, vm), [2, 1, 0, 0, 1]);
    let batch = kernel.open(1, VmKind::Sev);
    notifier.reclaimed(notice(batch).as_bytes(), &mut kernel);
    want(&mut notifier, &mut kernel, 1);
    // Asked for once more, as it may owe for more by now: that is the same write-back.
    notifier.settle(&mut kernel);
    assert_eq!(of_vm(&mut notifier, &mut kernel, vm), [3, 1, 1, 0, 1]);
    kernel.acknowledge();
    assert_eq!(of_vm(&mut notifier, &mut kernel, vm), [3, 1, 1, 1, 1]);
    assert_eq!(of_vm(&mut notifier, &mut kernel, VmId::new(7, 0)), [0; 5]);
    assert_eq!(of_vm(&mut notifier, &mut kernel, VmId::new(u16::MAX, 0)), [0; 5]);
    // The next VM in the slot begins at 0, and the one before is forgotten.
    assert_eq!(of_vm(&mut notifier, &mut kernel, next), [0; 5]);
    let late = Reclaimed { vm: next.bits(), ..notice(batch) };
    notifier.reclaimed(late.as_bytes(), &mut kernel);
    assert_eq!(of_vm(&mut notifier, &mut kernel, next), [1, 1, 0, 0, 0]);
    assert_eq!(of_vm(&mut notifier, &mut kernel, vm), [0; 5]);
    // A notice of a VM that can't be counts for nobody.
    assert!(notifier.reclaimed(Reclaimed { vm: u32::MAX, ..notice(batch) }.as_bytes(), &mut kernel));
}

proptest! {
    /// Whatever notices are lost and whenever notifier is restarted: after one look every batch is on its way.
    #[test]
    fn nothing_stays_open(steps in prop::collection::vec((0..8usize, 0..4u8, any::<bool>(), any::<bool>()), 0..60)) {
        let (mut notifier, mut kernel) = (Notifier::new(), Fake::default());
        for (slot, kind, lost, restart) in steps {
            if kernel.batches.get(slot).copied().flatten().is_none() {
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
