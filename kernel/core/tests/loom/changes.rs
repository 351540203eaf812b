//! A change of guest memory begins, happens and ends on one CPU, while a fault on another decides what to map and commits.
//! What was decided before the change is never written after it.

use std::sync::Arc;

use caisson_core::invalidation::Invalidation;
use caisson_proto::addr::Gfn;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

/// The kernel's part, and what memory holds: which frame a page is to have, and which one its entry has (0: none).
struct World {
    invalidation: Invalidation,
    wanted: AtomicU64,
    entry: Mutex<u64>,
}

const PAGE: Gfn = Gfn(5);

/// Ends a change.
type End = fn(&World);

fn real_end(world: &World) {
    world.invalidation.end().unwrap();
}

/// `changes` of them one after the other, against one fault that tries again until it is through.
fn model(changes: u64, end: End) {
    loom::model(move || {
        let world =
            Arc::new(World { invalidation: Invalidation::new(), wanted: AtomicU64::new(1), entry: Mutex::new(0) });
        let fault = {
            let world = world.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    let snapshot = world.invalidation.sequence();
                    let decided = world.wanted.load(Ordering::Acquire);
                    let mut entry = world.entry.lock().unwrap();
                    if world.invalidation.commit(snapshot, PAGE, 1).is_ok() {
                        *entry = decided;
                        return;
                    }
                }
            })
        };
        for change in 0..changes {
            {
                let _no_commit = world.entry.lock().unwrap();
                world.invalidation.begin(PAGE, Gfn(PAGE.0 + 1)).unwrap();
            }
            world.wanted.store(change + 2, Ordering::Release);
            *world.entry.lock().unwrap() = 0;
            end(&world);
        }
        fault.join().unwrap();
        let entry = *world.entry.lock().unwrap();
        assert!(
            entry == 0 || entry == world.wanted.load(Ordering::Acquire),
            "an entry that was decided before a change"
        );
    });
}

#[test]
fn what_was_decided_before_a_change_is_not_written_after_it() {
    model(1, real_end);
}

#[test]
fn nor_between_two_changes() {
    model(2, real_end);
}

/// What the broken ends and commits below do, in the right order: so they fail for the order alone.
mod parts {
    use loom::sync::atomic::AtomicU32;

    use super::*;

    /// The fields of [`Invalidation`], of a single page.
    pub struct Parts {
        pub sequence: AtomicU64,
        pub in_progress: AtomicU32,
    }

    /// In which order the two are touched.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Order {
        Right,
        Swapped,
    }

    pub fn model(end: Order, commit: Order) {
        loom::model(move || {
            let parts = Arc::new(Parts { sequence: AtomicU64::new(0), in_progress: AtomicU32::new(0) });
            let (wanted, entry) = (Arc::new(AtomicU64::new(1)), Arc::new(Mutex::new(0)));
            let fault = {
                let (parts, wanted, entry) = (parts.clone(), wanted.clone(), entry.clone());
                thread::spawn(move || {
                    let snapshot = parts.sequence.load(Ordering::Acquire);
                    let decided = wanted.load(Ordering::Acquire);
                    let mut entry = entry.lock().unwrap();
                    let sequence = || parts.sequence.load(Ordering::Acquire) == snapshot;
                    let quiet = || parts.in_progress.load(Ordering::Acquire) == 0;
                    let passes = match commit {
                        Order::Right => quiet() && sequence(),
                        Order::Swapped => sequence() && quiet(),
                    };
                    if passes {
                        *entry = decided;
                    }
                })
            };
            {
                let _no_commit = entry.lock().unwrap();
                parts.in_progress.fetch_add(1, Ordering::AcqRel);
            }
            wanted.store(2, Ordering::Release);
            *entry.lock().unwrap() = 0;
            let moves = || parts.sequence.fetch_add(1, Ordering::AcqRel);
            if end == Order::Right {
                moves();
            }
            parts.in_progress.fetch_sub(1, Ordering::AcqRel);
            if end == Order::Swapped {
                moves();
            }
            fault.join().unwrap();
            let entry = *entry.lock().unwrap();
            assert!(entry == 0 || entry == 2, "an entry that was decided before a change");
        });
    }
}
use parts::Order;

#[test]
fn the_parts_in_order_pass() {
    parts::model(Order::Right, Order::Right);
}

#[test]
#[should_panic = "decided before a change"]
fn a_count_that_shrinks_before_the_sequence_moves_is_found() {
    parts::model(Order::Swapped, Order::Right);
}

#[test]
#[should_panic = "decided before a change"]
fn a_commit_that_looks_at_the_sequence_first_is_found() {
    parts::model(Order::Right, Order::Swapped);
}

#[test]
#[should_panic = "decided before a change"]
fn an_end_that_leaves_the_sequence_is_found() {
    model(1, |world| world.invalidation.forget());
}
