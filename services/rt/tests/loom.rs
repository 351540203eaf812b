//! The ring under every interleaving that the memory model allows:
//! `RUSTFLAGS="--cfg loom" cargo test -p caisson-rt --release --test loom`.
//!
//! Slots are plain cells here, so that an access which isn't ordered by the counts is a reported race. A doorbell
//! that is lost leaves a side waiting for ever, which is reported as a deadlock.
#![cfg(loom)]

use caisson_proto::ring::{SLOTS, header};
use caisson_rt::ring::{Consumer, Memory, Producer, Received};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Notify};
use loom::thread;

struct Page {
    counts: [AtomicU64; 2],
    flags: [AtomicU32; 3],
    slots: Vec<UnsafeCell<[u64; 8]>>,
}

#[derive(Clone)]
struct Shared(Arc<Page>);

impl Shared {
    fn new(head: u64, tail: u64) -> Self {
        Self(Arc::new(Page {
            counts: [AtomicU64::new(head), AtomicU64::new(tail)],
            flags: [AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)],
            slots: (0..SLOTS).map(|_| UnsafeCell::new([0; 8])).collect(),
        }))
    }

    fn flag(&self, at: usize) -> &AtomicU32 {
        &self.0.flags[(at - header::CONSUMER_SLEEPS) / 4]
    }
}

impl Memory for Shared {
    fn load64(&self, at: usize, order: Ordering) -> u64 {
        self.0.counts[at / 8].load(order)
    }
    fn store64(&self, at: usize, value: u64, order: Ordering) {
        self.0.counts[at / 8].store(value, order);
    }
    fn load32(&self, at: usize, order: Ordering) -> u32 {
        self.flag(at).load(order)
    }
    fn swap32(&self, at: usize, value: u32, order: Ordering) -> u32 {
        self.flag(at).swap(value, order)
    }
    fn read_slot(&self, at: usize) -> [u64; 8] {
        // SAFETY: loom checks that no write runs beside this.
        self.0.slots[at / 64 - 1].with(|slot| unsafe { *slot })
    }
    fn write_slot(&self, at: usize, words: &[u64; 8]) {
        // SAFETY: loom checks that no other access runs beside this.
        self.0.slots[at / 64 - 1].with_mut(|slot| unsafe { *slot = *words });
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// All interleavings with at most three preemptions. Without that bound they pass too, but take minutes.
fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

/// Reads `expected` messages, sleeping in between.
fn read(mut consumer: Consumer<Shared>, bell: &Notify, expected: &[&[u8]]) {
    let mut buffer = [0; 128];
    for message in expected {
        loop {
            match consumer.pop(&mut buffer) {
                Received::Message(bytes) => {
                    assert_eq!(&buffer[..bytes], *message);
                    break;
                }
                Received::Nothing => {
                    if consumer.sleep() {
                        bell.wait();
                    }
                }
                Received::Broken => panic!("an honest producer"),
            }
        }
    }
}

#[test]
fn a_sleeping_consumer_is_always_rung() {
    model(|| {
        let page = Shared::new(62, 62);
        let bell = Arc::new(Notify::new());
        let (other, rung) = (page.clone(), bell.clone());
        let producer = thread::spawn(move || {
            let mut producer = Producer::new(other);
            for message in [b"one", b"two"] {
                producer.push(message).unwrap();
                if producer.must_wake() {
                    rung.notify();
                }
            }
        });
        read(Consumer::new(page), &bell, &[b"one", b"two"]);
        producer.join().unwrap();
    });
}

#[test]
fn a_message_of_two_slots_is_seen_as_a_whole() {
    model(|| {
        let page = Shared::new(62, 62);
        let bell = Arc::new(Notify::new());
        let (other, rung) = (page.clone(), bell.clone());
        let producer = thread::spawn(move || {
            let mut producer = Producer::new(other);
            producer.push(&[7; 100]).unwrap();
            if producer.must_wake() {
                rung.notify();
            }
        });
        read(Consumer::new(page), &bell, &[&[7; 100]]);
        producer.join().unwrap();
    });
}

#[test]
fn a_producer_that_waits_for_room_is_always_rung() {
    model(|| {
        // Full but for nothing: the consumer is 63 slots behind.
        let page = Shared::new(u64::from(SLOTS), 0);
        let bell = Arc::new(Notify::new());
        let (other, room) = (page.clone(), bell.clone());
        let producer = thread::spawn(move || {
            let mut producer = Producer::new(other);
            while producer.push(b"new").is_err() {
                if producer.wait_room() {
                    room.wait();
                }
            }
        });
        let mut consumer = Consumer::new(page);
        let mut buffer = [0; 8];
        for _ in 0..2 {
            assert_eq!(consumer.pop(&mut buffer), Received::Message(0));
            if consumer.must_wake() {
                bell.notify();
            }
        }
        producer.join().unwrap();
    });
}
