//! Every interleaving of the lock-free pieces; and of flushes, tickets and doorbells in the kernel as a whole.
//! `RUSTFLAGS="--cfg loom" cargo test --release -p caisson-core --test loom`
#![cfg(loom)]

mod board;
mod changes;
#[path = "../common/mod.rs"]
mod common;
mod rows;
mod tickets;

use caisson_core::bells::Bells;
use caisson_core::context::{Context, ContextState, Phase, pending};
use caisson_core::turn::Turn;
use caisson_core::woken::Woken;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::thread;

/// Contexts enter and leave concurrently. A context that wasn't granted its turn parks until woken; at the end all
/// were served, never two at once. `preemptions` bounds how often a thread is interrupted where it need not be.
fn contend(contexts: usize, preemptions: Option<usize>) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        let turn = Arc::new(Turn::new());
        let inside = Arc::new(AtomicUsize::new(0));
        let woken: Arc<Vec<AtomicBool>> = Arc::new((0..contexts).map(|_| AtomicBool::new(false)).collect());
        let run = |me: usize, turn: &Turn, inside: &AtomicUsize, woken: &[AtomicBool]| {
            if !turn.enter(|| Context::doorbell(me)) {
                while !woken[me].load(Ordering::Acquire) {
                    thread::yield_now();
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
                thread::spawn(move || run(me, &turn, &inside, &woken))
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
    contend(2, None);
}

#[test]
fn three_contexts_take_turns() {
    contend(3, Some(2));
}

/// Runs activations until none is queued any more. Returns the bits taken.
fn activations(bells: &Bells) -> u64 {
    let mut taken = 0;
    loop {
        taken |= bells.take();
        if !bells.done() || !bells.queue() {
            return taken;
        }
    }
}

#[test]
fn no_bell_is_lost_between_ring_and_done() {
    loom::model(|| {
        let bells = Arc::new(Bells::new());
        let taken = Arc::new(AtomicU64::new(0));
        let running = Arc::new(AtomicUsize::new(0));
        let ring = |bit: u64, bells: &Bells, taken: &AtomicU64, running: &AtomicUsize| {
            bells.ring(bit);
            if bells.queue() {
                assert_eq!(running.fetch_add(1, Ordering::AcqRel), 0, "two activations");
                // The activation may be queued again by another only after `done`.
                let bits = bells.take();
                taken.fetch_or(bits, Ordering::AcqRel);
                running.fetch_sub(1, Ordering::AcqRel);
                if bells.done() && bells.queue() {
                    taken.fetch_or(activations(bells), Ordering::AcqRel);
                }
            }
        };
        let other = {
            let (bells, taken, running) = (bells.clone(), taken.clone(), running.clone());
            thread::spawn(move || ring(2, &bells, &taken, &running))
        };
        ring(1, &bells, &taken, &running);
        other.join().unwrap();
        assert_eq!(taken.load(Ordering::Acquire), 3);
        assert!(!bells.any() && !bells.is_queued());
    });
}

/// A service is killed and started again while bells of the former life are on their way elsewhere: its first message is
/// taken exactly once, and nobody waits for a turn that is kept for this message.
#[test]
fn the_first_message_is_never_lost() {
    loom::model(|| {
        let service = Arc::new((Bells::new(), Turn::new()));
        let alive = Arc::new(AtomicBool::new(true));
        let [started, granted] = [0, 0].map(|zero| Arc::new(AtomicUsize::new(zero)));
        service.0.ring(1);
        assert!(service.0.queue());
        let activate = {
            let (started, granted, service, alive) = (started.clone(), granted.clone(), service.clone(), alive.clone());
            move || {
                let (bells, turn) = &*service;
                loop {
                    // As `activate`, `answer` and `ring` do it.
                    let lives = alive.load(Ordering::Acquire);
                    if lives && bells.take_fresh() {
                        started.fetch_add(1, Ordering::AcqRel);
                        assert_eq!(turn.leave(), None, "the other activation is here");
                    } else if bells.take() != 0 && lives {
                        if !turn.enter(|| Context::doorbell(0)) {
                            while granted.load(Ordering::Acquire) == 0 {
                                thread::yield_now();
                            }
                        }
                        assert_eq!(turn.leave(), None);
                    }
                    if !(bells.done() && alive.load(Ordering::Acquire) && bells.queue()) {
                        return;
                    }
                }
            }
        };
        let old = thread::spawn(activate.clone());
        let (bells, turn) = &*service;
        let restart = || {
            if !bells.queue() {
                return false;
            }
            if !turn.try_enter() {
                let _ = bells.done();
                return false;
            }
            bells.refresh();
            alive.store(true, Ordering::Release);
            activate();
            true
        };
        let killed = turn.try_enter();
        let mut again = false;
        if killed {
            alive.store(false, Ordering::Release);
            if turn.leave().is_some() {
                granted.store(1, Ordering::Release);
            }
            again = restart();
        }
        old.join().unwrap();
        if killed && !again {
            assert!(restart(), "nothing is under way");
        }
        assert_eq!(started.load(Ordering::Acquire), usize::from(killed));
        assert!(!turn.is_taken() && !bells.any() && !bells.is_queued());
    });
}

/// A kick of a vCPU that parks, or enters its guest, at the same time.
#[test]
fn no_kick_is_lost_on_the_way_into_the_guest() {
    loom::model(|| {
        let vcpu = Arc::new(ContextState::new());
        vcpu.phase.swap(Phase::Running);
        let interrupted = Arc::new(AtomicBool::new(false));
        let kicker = {
            let (vcpu, interrupted) = (vcpu.clone(), interrupted.clone());
            thread::spawn(move || {
                assert!(!vcpu.kick(pending::KICK), "it was not parked");
                if vcpu.in_guest() {
                    interrupted.store(true, Ordering::Release);
                }
            })
        };
        let entered = vcpu.enter().is_some();
        kicker.join().unwrap();
        // It is in its guest for good unless somebody interrupts it.
        assert!(!entered || interrupted.load(Ordering::Acquire), "the guest runs on and nobody knows");
        assert_eq!(entered, vcpu.in_guest());
    });
}

#[test]
fn no_kick_is_lost_on_the_way_to_bed() {
    loom::model(|| {
        let vcpu = Arc::new(ContextState::new());
        let kicker = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.kick(pending::KICK))
        };
        vcpu.phase.swap(Phase::Parked);
        let by_itself = vcpu.unpark();
        let by_other = kicker.join().unwrap();
        assert!(by_itself ^ by_other, "made ready exactly once");
        assert_eq!(vcpu.phase.get(), Phase::Ready);
    });
}

/// A shoot-down while a vCPU enters and leaves: once it is complete, nothing stale is in use.
#[test]
fn no_stale_translation_survives_a_shoot_down() {
    loom::model(|| {
        let vcpu = Arc::new(ContextState::new());
        // Whether the CPU's TLB has the old translation; only the guest's entries and exits touch it.
        let mapped = Arc::new(AtomicBool::new(true));
        let complete = Arc::new(AtomicBool::new(false));
        let guest = {
            let (vcpu, mapped, complete) = (vcpu.clone(), mapped.clone(), complete.clone());
            thread::spawn(move || {
                let mut cached = false;
                for _ in 0..2 {
                    let flush = vcpu.enter().expect("nothing is pending");
                    if flush {
                        cached = false;
                    }
                    cached |= mapped.load(Ordering::Acquire);
                    assert!(!(complete.load(Ordering::Acquire) && cached), "a stale translation is in use");
                    vcpu.leave();
                }
            })
        };
        mapped.store(false, Ordering::Release);
        vcpu.make_stale();
        let world = vcpu.world();
        while world & 1 == 1 && vcpu.world() == world {
            thread::yield_now();
        }
        complete.store(true, Ordering::Release);
        guest.join().unwrap();
    });
}

/// A context is handed to a CPU that is about to wait for interrupts.
#[test]
fn no_wake_up_is_lost_on_the_way_to_an_idle_cpu() {
    loom::model(|| {
        let woken = Arc::new(Woken::new());
        let interrupt = Arc::new(AtomicBool::new(false));
        let waker = {
            let (woken, interrupt) = (woken.clone(), interrupt.clone());
            thread::spawn(move || {
                woken.put(Context::vcpu(0, 0));
                interrupt.store(true, Ordering::Release);
            })
        };
        let mut got = false;
        let mut look = || woken.take(|_| got = true);
        look();
        // Interrupts are off until the CPU waits; one that came meanwhile is pending and ends the wait.
        waker.join().unwrap();
        assert!(interrupt.load(Ordering::Acquire));
        look();
        assert!(got, "the CPU waits and its context is ready");
    });
}
