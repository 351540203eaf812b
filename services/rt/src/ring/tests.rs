//! The ring on the host: what is sent arrives, and no lie of the other side does harm.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

#[derive(Clone)]
struct Page(Rc<RefCell<[u64; 512]>>);

impl Page {
    fn new() -> Self {
        Self(Rc::new(RefCell::new([0; 512])))
    }
}

impl Memory for Page {
    fn load64(&self, at: usize, _: Ordering) -> u64 {
        self.0.borrow()[at / 8]
    }
    fn store64(&self, at: usize, value: u64, _: Ordering) {
        self.0.borrow_mut()[at / 8] = value;
    }
    fn load32(&self, at: usize, _: Ordering) -> u32 {
        (self.0.borrow()[at / 8] >> (at % 8 * 8)) as u32
    }
    fn swap32(&self, at: usize, value: u32, _: Ordering) -> u32 {
        let shift = at % 8 * 8;
        let word = &mut self.0.borrow_mut()[at / 8];
        let old = (*word >> shift) as u32;
        *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
        old
    }
    fn read_slot(&self, at: usize) -> [u64; 8] {
        self.0.borrow()[at / 8..at / 8 + 8].try_into().unwrap()
    }
    fn write_slot(&self, at: usize, words: &[u64; 8]) {
        self.0.borrow_mut()[at / 8..at / 8 + 8].copy_from_slice(words);
    }
    fn fence(&self) {}
}

fn pair() -> (Page, Producer<Page>, Consumer<Page>) {
    let page = Page::new();
    (page.clone(), Producer::new(page.clone()), Consumer::new(page))
}

#[test]
fn a_message_longer_than_the_buffer_is_skipped_whole() {
    let (_, mut producer, mut consumer) = pair();
    producer.push(&[7; 200]).unwrap();
    producer.push(b"next").unwrap();
    let mut buffer = [0; 100];
    assert_eq!(consumer.pop(&mut buffer), Received::Broken);
    assert_eq!(consumer.pop(&mut buffer), Received::Message(4));
    assert_eq!(&buffer[..4], b"next");
    assert_eq!(consumer.pop(&mut buffer), Received::Nothing);
}

#[test]
fn a_full_ring_refuses_and_keeps_what_it_has() {
    let (_, mut producer, mut consumer) = pair();
    for n in 0..SLOTS as u8 {
        producer.push(&[n]).unwrap();
    }
    assert_eq!(producer.push(b"x"), Err(Full));
    assert_eq!(producer.write(b"x"), 0);
    assert!(producer.wait_room());
    let mut buffer = [0; 1];
    assert_eq!(consumer.pop(&mut buffer), Received::Message(1));
    assert_eq!(buffer, [0]);
    assert!(consumer.must_wake());
    assert!(!consumer.must_wake());
    assert_eq!(producer.write(b"x"), 1);
}

#[test]
fn a_sleeper_is_rung_once() {
    let (_, mut producer, mut consumer) = pair();
    assert!(consumer.sleep());
    producer.push(b"a").unwrap();
    assert!(producer.must_wake());
    producer.push(b"b").unwrap();
    assert!(!producer.must_wake());
    assert!(!consumer.sleep());
}

#[test]
fn a_restarted_side_goes_on_where_the_ring_stands() {
    let (page, mut producer, mut consumer) = pair();
    let mut buffer = [0; 8];
    producer.push(b"one").unwrap();
    producer.push(b"two").unwrap();
    assert_eq!(consumer.pop(&mut buffer), Received::Message(3));
    let mut consumer = Consumer::new(page.clone());
    let mut producer = Producer::new(page.clone());
    producer.push(b"three").unwrap();
    assert_eq!(consumer.pop(&mut buffer), Received::Message(3));
    assert_eq!(&buffer[..3], b"two");
    assert_eq!(consumer.pop(&mut buffer), Received::Message(5));
    // A page wiped under both of them costs a message or two, not the ring.
    *page.0.borrow_mut() = [0; 512];
    let delivered = (0..4u8).any(|n| {
        producer.push(&[n]).unwrap();
        consumer.pop(&mut buffer) == Received::Message(1)
    });
    assert!(delivered);
}

/// Miri is slow: fewer cases and shorter ones.
const CASES: u32 = if cfg!(miri) { 2 } else { 256 };
const MESSAGES: usize = if cfg!(miri) { 8 } else { 60 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]
    #[test]
    fn what_is_sent_arrives_in_order(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..MESSAGES),
        start in any::<u64>(),
    ) {
        let page = Page::new();
        page.store64(header::HEAD, start, Ordering::Relaxed);
        page.store64(header::TAIL, start, Ordering::Relaxed);
        let (mut producer, mut consumer) = (Producer::new(page.clone()), Consumer::new(page));
        let mut buffer = [0; 300];
        let mut expected = messages.iter();
        for message in &messages {
            while producer.push(message).is_err() {
                let next = expected.next().unwrap();
                prop_assert_eq!(consumer.pop(&mut buffer), Received::Message(next.len()));
                prop_assert_eq!(&buffer[..next.len()], &next[..]);
            }
        }
        for next in expected {
            prop_assert_eq!(consumer.pop(&mut buffer), Received::Message(next.len()));
            prop_assert_eq!(&buffer[..next.len()], &next[..]);
        }
        prop_assert_eq!(consumer.pop(&mut buffer), Received::Nothing);
    }

    #[test]
    fn a_page_full_of_lies_is_survived(words in prop::collection::vec(any::<u64>(), 512), near in 0..70u64) {
        let page = Page::new();
        page.0.borrow_mut().copy_from_slice(&words);
        let tail = page.load64(header::TAIL, Ordering::Relaxed);
        page.store64(header::HEAD, tail.wrapping_add(near), Ordering::Relaxed);
        let (mut producer, mut consumer) = (Producer::new(page.clone()), Consumer::new(page));
        let mut buffer = [0; 100];
        for _ in 0..SLOTS + 1 {
            if let Received::Message(bytes) = consumer.pop(&mut buffer) {
                prop_assert!(bytes <= buffer.len());
            }
        }
        prop_assert_eq!(consumer.pop(&mut buffer), Received::Nothing);
        let _ = producer.push(b"again");
        let _ = producer.write(&[0; 1000]);
    }
}
