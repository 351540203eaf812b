//! rust-vmm's `virtio-queue` judges our queues: whatever a driver puts there that keeps to the rules, both see the same requests,
//! and leave the same in memory.

mod common;

use caisson_proto::abi::Status;
use caisson_vmm::virtio::chain::Span;
use caisson_vmm::virtio::memory::{Broken, Reach};
use caisson_vmm::virtio::queue::Queue;
use proptest::prelude::*;
use virtio_queue::{Queue as Judge, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 0x10_0000;
const SIZE: u16 = 16;
/// Where the parts of a queue lie.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// rust-vmm's memory as ours.
struct Theirs<'a>(&'a GuestMemoryMmap);

impl Reach for Theirs<'_> {
    fn contains(&self, gpa: u64, bytes: u64) -> bool {
        gpa.checked_add(bytes).is_some_and(|end| end <= MEMORY as u64)
    }
    fn read(&mut self, gpa: u64, into: &mut [u8]) -> Result<(), Broken> {
        self.0.read_slice(into, GuestAddress(gpa)).map_err(|_| Broken::Memory)
    }
    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), Broken> {
        self.0.write_slice(from, GuestAddress(gpa)).map_err(|_| Broken::Memory)
    }
    fn release(&mut self, _: u64, _: u64) -> Result<(), Status> {
        Err(Status::Range)
    }
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

/// Both devices' sides of a queue, each in its own memory.
fn queues(ours: &GuestMemoryMmap, judges: &GuestMemoryMmap, events: bool) -> (Queue, Judge) {
    let mut queue = Queue::new(SIZE);
    (queue.size, queue.table, queue.driver, queue.device) = (SIZE, TABLE, AVAILABLE, USED);
    queue.enable(&Theirs(ours), events).unwrap();
    let mut judge = Judge::new(SIZE).unwrap();
    judge.set_desc_table_address(Some(TABLE as u32), None);
    judge.set_avail_ring_address(Some(AVAILABLE as u32), None);
    judge.set_used_ring_address(Some(USED as u32), None);
    judge.set_event_idx(events);
    judge.set_ready(true);
    assert!(judge.is_valid(judges));
    (queue, judge)
}

/// Chains: of each its buffers, how many of which the device reads.
fn chains() -> impl Strategy<Value = Vec<(Vec<(u32, u32)>, usize)>> {
    let span = (0..MEMORY as u32 - 0x2_1000, 0_u32..0x1000);
    let chain = (proptest::collection::vec(span, 1..5), 0_usize..5);
    proptest::collection::vec(chain, 1..4)
}

proptest! {
    /// Rounds of requests, until the indices have gone round too.
    #[test]
    fn both_see_the_same(rounds in proptest::collection::vec(chains(), 1..30), events: bool, wanted: [u16; 30], start: u16) {
        let (a, b) = (memory(), memory());
        let both = |at: u64, bytes: &[u8]| [&a, &b].into_iter().for_each(|m| m.write_slice(bytes, GuestAddress(at)).unwrap());
        let (mut ours, mut judge) = queues(&a, &b, events);
        let mut index = 0_u16;
        for (round, wanted) in rounds.iter().zip(wanted) {
            // Descriptors lie one behind the other from any place on.
            let mut free = start % SIZE;
            for (chain, reads) in round {
                let head = free;
                for (at, (gpa, bytes)) in chain.iter().enumerate() {
                    let more = at + 1 < chain.len();
                    let flags = u16::from(more) | if at >= *reads { 2 } else { 0 };
                    let next = (free + 1) % SIZE;
                    let mut descriptor = (u64::from(*gpa) + 0x2_0000).to_le_bytes().to_vec();
                    descriptor.extend([bytes.to_le_bytes(), (u32::from(next) << 16 | u32::from(flags)).to_le_bytes()].concat());
                    both(TABLE + 16 * u64::from(free), &descriptor);
                    free = next;
                }
                both(AVAILABLE + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
                index = index.wrapping_add(1);
            }
            both(AVAILABLE + 2, &index.to_le_bytes());
            // What the driver wants to hear of, behind its ring, or by its flags.
            if events {
                both(AVAILABLE + 4 + 2 * u64::from(SIZE), &(wanted % 64).to_le_bytes());
            } else {
                both(AVAILABLE, &(wanted & 1).to_le_bytes());
            }
            for _ in round {
                let seen = ours.pop(&mut Theirs(&a)).unwrap().expect("one more");
                let theirs = judge.pop_descriptor_chain(&b).expect("one more");
                prop_assert_eq!(seen.head, theirs.head_index());
                let spans = |writes: bool| {
                    let own = theirs.clone().filter(move |descriptor| descriptor.is_write_only() == writes);
                    own.map(|one| Span { gpa: one.addr().raw_value(), bytes: one.len() }).collect::<Vec<_>>()
                };
                prop_assert_eq!(&seen.readable, &spans(false));
                prop_assert_eq!(&seen.writable, &spans(true));
                ours.push(&mut Theirs(&a), seen.head, u32::from(wanted)).unwrap();
                judge.add_used(&b, seen.head, u32::from(wanted)).unwrap();
            }
            prop_assert_eq!(ours.pop(&mut Theirs(&a)).unwrap(), None);
            prop_assert_eq!(ours.rearm(&mut Theirs(&a)).unwrap(), judge.enable_notification(&b).unwrap());
            // Without event indices the judge looks at no flags and always notifies.
            let told = ours.wants_interrupt(&mut Theirs(&a)).unwrap();
            let judged = judge.needs_notification(&b).unwrap();
            prop_assert_eq!(told, if events { judged } else { wanted & 1 == 0 });
            let rings = |memory: &GuestMemoryMmap| {
                let mut bytes = vec![0; 0x1_0000];
                memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
                bytes
            };
            prop_assert!(rings(&a) == rings(&b), "they leave the same");
        }
    }
}
