//! The tables against models that are too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use caisson_core::batches::{Batches, MAX_BATCHES, Payable};
use caisson_core::cpus::CpuSet;
use caisson_core::frames::{FrameTable, Frames};
use caisson_core::invalidation::Invalidation;
use caisson_proto::abi::Status;
use caisson_proto::addr::{BatchId, CpuId, Frame, Gfn, Sequence, VmId};
use caisson_proto::kernel::{FrameState, VmKind};
use proptest::prelude::*;

const N: u64 = 24;
const CASES: u32 = if cfg!(miri) { 4 } else { 256 };

#[derive(Clone, Debug)]
enum Step {
    Own(u64, u64, u16),
    Adopt(u64, u64, u16),
    /// Take frames that are all one VM's into a batch that these CPUs owe.
    Take(u64, u64, u64),
    Pay(usize),
    Settle(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..N + 2, 1..5u64);
    prop_oneof![
        (range(), 0..3u16).prop_map(|((at, n), vm)| Step::Own(at, n, vm)),
        (range(), 0..3u16).prop_map(|((at, n), vm)| Step::Adopt(at, n, vm)),
        (range(), 0..8u64).prop_map(|((at, n), owed)| Step::Take(at, n, owed)),
        (0..3usize).prop_map(Step::Pay),
        (0..4u16).prop_map(Step::Settle),
    ]
}

/// What a frame is, by the model. Batches are sets of frames with debts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Free,
    Owned(u16),
    Kernel(u16),
    Waits(BatchId),
}

/// The CPUs with a bit in `set`.
fn cpus(set: u64) -> CpuSet {
    CpuSet::of((0..64).filter(|cpu| set >> cpu & 1 == 1).map(CpuId))
}

fn vm(n: u16) -> VmId {
    VmId::new(n, 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_are_what_the_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        let table = FrameTable::new(entries());
        table.declare(Frame(0), N, Frames::free(true));
        let mut batches = Batches::new();
        let mut model = vec![Is::Free; N as usize];
        let mut debts: BTreeMap<u32, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Own(at, n, of) | Step::Adopt(at, n, of) => {
                    let expected = match model.get(at as usize..(at + n) as usize) {
                        None if at >= N || model[at as usize..].iter().all(|is| *is == Is::Free) => Err(Status::Range),
                        None => Err(Status::State),
                        Some(range) if range.iter().all(|is| *is == Is::Free) => Ok(()),
                        Some(_) => Err(Status::State),
                    };
                    let checked = table.check_free(Frame(at), n, &batches).map(|_| ());
                    prop_assert_eq!(checked, expected);
                    if checked.is_ok() {
                        let (is, own) = match step {
                            Step::Own(..) => (Is::Owned(of), true),
                            _ => (Is::Kernel(of), false),
                        };
                        let to = if own { FrameState::Owned } else { FrameState::Kernel };
                        table.turn(Frame(at), n, FrameState::Free, Frames::of(to, vm(of)));
                        model[at as usize..(at + n) as usize].fill(is);
                    }
                }
                Step::Take(at, n, owed) => {
                    let Some(range) = model.get(at as usize..(at + n) as usize) else { continue };
                    let first = range[0];
                    let (Is::Owned(of) | Is::Kernel(of)) = first else { continue };
                    if range.iter().any(|is| *is != first) {
                        continue;
                    }
                    let batch = batches.open(vm(of), VmKind::Sev, &cpus(owed), Payable::WriteBack).unwrap();
                    let from = if matches!(first, Is::Owned(_)) { FrameState::Owned } else { FrameState::Kernel };
                    table.turn(Frame(at), n, from, Frames::quarantined(batch));
                    batches.join(batch, n);
                    *debts.entry(batch.0).or_default() |= owed;
                    model[at as usize..(at + n) as usize].fill(Is::Waits(batch));
                }
                Step::Pay(cpu) => {
                    let mut paid = BTreeSet::new();
                    while let Some(open) = batches.pay(CpuId(cpu as u16), false) {
                        table.paid(open.frames);
                        paid.insert(open.id.0);
                    }
                    let mut expected = BTreeSet::new();
                    for (id, owed) in &mut debts {
                        if *owed >> cpu & 1 == 1 {
                            *owed &= !(1 << cpu);
                            if *owed == 0 {
                                expected.insert(*id);
                            }
                        }
                    }
                    prop_assert_eq!(&paid, &expected);
                    close(&mut model, &mut debts, &paid);
                }
                Step::Settle(slot) => {
                    let Some(&open) = batches.get(usize::from(slot)) else { continue };
                    let settled = batches.settle(open.id);
                    prop_assert_eq!(settled.is_ok(), debts[&open.id.0] == 0);
                    if settled.is_ok() {
                        table.paid(open.frames);
                        close(&mut model, &mut debts, &BTreeSet::from([open.id.0]));
                    }
                }
            }
            let counts = table.counts();
            prop_assert_eq!(counts.iter().sum::<u64>(), N);
            let count = |of: fn(&Is) -> bool| model.iter().filter(|is| of(is)).count() as u64;
            prop_assert_eq!(counts[FrameState::Free as usize], count(|is| matches!(is, Is::Free)));
            prop_assert_eq!(counts[FrameState::Kernel as usize], count(|is| matches!(is, Is::Kernel(_))));
            prop_assert_eq!(counts[FrameState::Owned as usize], count(|is| matches!(is, Is::Owned(_))));
            prop_assert_eq!(counts[FrameState::Quarantined as usize], count(|is| matches!(is, Is::Waits(_))));
            for (frame, is) in model.iter().enumerate() {
                let found = table.get(Frame(frame as u64), &batches).unwrap();
                let agrees = match *is {
                    Is::Free => found.state == FrameState::Free,
                    Is::Owned(n) => found == Frames::of(FrameState::Owned, vm(n)),
                    Is::Kernel(n) => found == Frames::of(FrameState::Kernel, vm(n)),
                    Is::Waits(of) => found == Frames::quarantined(of),
                };
                prop_assert!(agrees, "frame {} is {:?}", frame, is);
            }
        }
    }

    #[test]
    fn a_commit_passes_exactly_if_nothing_changed_under_it(
        steps in proptest::collection::vec((0..4u8, 0..40u64, 1..8u64), 1..60),
    ) {
        let real = Invalidation::new();
        let mut sequence = 0u64;
        let mut open: Vec<(u64, u64)> = Vec::new();
        let mut in_progress = 0;
        for (kind, at, n) in steps {
            match kind {
                0 => {
                    real.begin(Gfn(at), Gfn(at + n)).unwrap();
                    open.push((at, at + n));
                    in_progress += 1;
                }
                1 => {
                    prop_assert_eq!(real.end().is_ok(), in_progress > 0);
                    if in_progress > 0 {
                        in_progress -= 1;
                        sequence += 1;
                    }
                    if in_progress == 0 {
                        open.clear();
                    }
                }
                _ => {
                    // The hull: from the lowest to the highest of all that began since nothing was open.
                    let low = open.iter().map(|range| range.0).min();
                    let high = open.iter().map(|range| range.1).max();
                    let in_hull = low.zip(high).is_some_and(|(low, high)| (at..at + n).any(|g| low <= g && g < high));
                    let snapshot = if kind == 2 { sequence } else { sequence ^ 1 };
                    let passes = real.commit(Sequence(snapshot), Gfn(at), n).is_ok();
                    prop_assert_eq!(passes, kind == 2 && !in_hull);
                }
            }
            prop_assert_eq!(real.sequence(), Sequence(sequence));
        }
    }
}

/// Entries for a table, kept so that Miri doesn't miss them.
fn entries() -> &'static [AtomicU64] {
    static KEPT: Mutex<Vec<&[AtomicU64]>> = Mutex::new(Vec::new());
    let entries: &[AtomicU64] = (0..N).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    KEPT.lock().unwrap().push(entries);
    entries
}

fn close(model: &mut [Is], debts: &mut BTreeMap<u32, u64>, paid: &BTreeSet<u32>) {
    debts.retain(|id, _| !paid.contains(id));
    for is in model {
        if let Is::Waits(batch) = is
            && paid.contains(&batch.0)
        {
            *is = Is::Free;
        }
    }
}

#[test]
fn room_is_known_before_anything_is_unmapped() {
    let mut batches = Batches::new();
    for n in 0..MAX_BATCHES as u16 {
        assert!(batches.place(vm(99), VmKind::Plain, Payable::WriteBack).is_ok());
        batches.open(vm(n), VmKind::Sev, &cpus(1), Payable::WriteBack).unwrap();
    }
    assert!(batches.place(vm(99), VmKind::Sev, Payable::WriteBack).is_ok());
    assert_eq!(batches.place(vm(99), VmKind::Plain, Payable::WriteBack), Err(Status::Busy));
    assert_eq!(batches.open(vm(0), VmKind::Plain, &CpuSet::EMPTY, Payable::WriteBack), Err(Status::Busy));
}
