//! Every interleaving of the turn queue. `RUSTFLAGS="--cfg loom" cargo test --release -p caisson-core --test loom`
#![cfg(loom)]

use caisson_core::context::Context;
use caisson_core::turn::Turn;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Contexts enter and leave concurrently. A context that wasn't granted its turn parks until woken; at the end all
/// were served, never two at once.
fn contend(contexts: usize) {
    loom::model(move || {
        let turn = Arc::new(Turn::new());
        let inside = Arc::new(AtomicUsize::new(0));
        let woken: Arc<Vec<AtomicBool>> = Arc::new((0..contexts).map(|_| AtomicBool::new(false)).collect());
        let run = |me: usize, turn: &Turn, inside: &AtomicUsize, woken: &[AtomicBool]| {
            if !turn.enter(Context::doorbell(me)) {
                while !woken[me].load(Ordering::Acquire) {
                    loom::thread::yield_now();
                }
            }
            assert_eq!(inside.fetch_add(1, Ordering::AcqRel), 0, "two contexts have the turn");
            inside.fetch_sub(1, Ordering::AcqRel);
            if let Some(next) = turn.leave() {
                assert!(!woken[next.index()].swap(true, Ordering::AcqRel), "woken twice");
            }
        };
        let others: Vec<_> = (1..contexts)
            .map(|me| {
                let (turn, inside, woken) = (turn.clone(), inside.clone(), woken.clone());
                loom::thread::spawn(move || run(me, &turn, &inside, &woken))
            })
            .collect();
        run(0, &turn, &inside, &woken);
        for other in others {
            other.join().unwrap();
        }
        assert!(!turn.is_taken());
    });
}

#[test]
fn two_contexts_take_turns() {
    contend(2);
}

#[test]
fn three_contexts_take_turns() {
    contend(3);
}
