//! Ballooning: large VMs give memory back, a job runs on it, and they take it again.

use super::{Build, CHUNK, Event, Kind, Trace, Vm, overhead};

/// Ticks in all: 240 s.
const LENGTH: u64 = 4800;
/// Chunks of a large VM: 256 MiB.
const CHUNKS: u64 = 128;
/// Chunks that are given back at a time at the most: 32 MiB.
const PIECE: u64 = 16;

/// A large VM and which of its chunks it has.
struct Large {
    vm: usize,
    has: [bool; CHUNKS as usize],
}

impl Large {
    fn all(&self, first: u64, count: u64) -> bool {
        self.has[first as usize..(first + count) as usize].iter().all(|has| *has)
    }

    fn set(&mut self, first: u64, count: u64, has: bool) {
        self.has[first as usize..(first + count) as usize].fill(has);
    }

    fn count(&self) -> u64 {
        self.has.iter().filter(|has| **has).count() as u64
    }
}

/// What goes on in a lane.
enum Phase {
    /// Memory is gathered for a job.
    Gather(Vm),
    /// It runs.
    Job(usize, u64),
    /// Memory is taken again.
    Return,
    /// Nothing, until then.
    Pause(u64),
}

struct Lane {
    phase: Phase,
    /// What was given: which large VM, first chunk, how many.
    pieces: Vec<(usize, u64, u64)>,
}

/// The trace.
pub fn trace(cpus: u16) -> Trace {
    let mut build = Build::new(Kind::Balloon, cpus);
    let count = u64::from(cpus / 8).min(24);
    let large = |build: &mut Build| build.start(Vm { pages: CHUNKS * CHUNK, vcpus: 8 });
    let mut vms: Vec<_> = (0..count).map(|_| Large { vm: large(&mut build), has: [true; CHUNKS as usize] }).collect();
    let lanes = u64::from(cpus / 16);
    let mut lanes: Vec<_> =
        (0..lanes).map(|lane| Lane { phase: Phase::Pause(20 + lane * 8), pieces: Vec::new() }).collect();
    for tick in 0..LENGTH {
        for lane in &mut lanes {
            step(&mut build, tick, lane, &mut vms);
        }
        build.tick();
    }
    build.finish()
}

fn step(build: &mut Build, tick: u64, lane: &mut Lane, vms: &mut [Large]) {
    match lane.phase {
        Phase::Pause(until) if tick >= until => {
            // 32 to 128 MiB.
            lane.phase = Phase::Gather(Vm { pages: CHUNK * build.rng.between(16, 64), vcpus: 2 });
        }
        Phase::Gather(vm) => {
            let has: u64 = lane.pieces.iter().map(|(.., count)| count * CHUNK).sum();
            if has >= vm.pages + overhead(vm) {
                // 5 to 20 s.
                lane.phase = Phase::Job(build.start(vm), tick + build.rng.between(100, 400));
                return;
            }
            let donor = build.rng.between(0, vms.len() as u64 - 1) as usize;
            let (count, large) = (build.rng.between(1, PIECE), &mut vms[donor]);
            let first = build.rng.between(0, CHUNKS - count);
            // Nobody gives more than half.
            if large.all(first, count) && large.count() >= CHUNKS / 2 + count {
                large.set(first, count, false);
                lane.pieces.push((donor, first, count));
                build.note(Event::Give(large.vm, first, count));
            }
        }
        Phase::Job(vm, until) if tick >= until => {
            build.stop(vm);
            lane.phase = Phase::Return;
        }
        Phase::Return => match lane.pieces.pop() {
            Some((donor, first, count)) => {
                vms[donor].set(first, count, true);
                build.note(Event::Take(vms[donor].vm, first, count));
            }
            // Up to 2 s.
            None => lane.phase = Phase::Pause(tick + build.rng.between(1, 40)),
        },
        Phase::Pause(_) | Phase::Job(..) => {}
    }
}
