//! Churn: functions that live for seconds, beside a few large VMs that hold most of the memory and stay.

use super::{Build, Kind, Trace, Vm};

/// Ticks in all: 240 s.
const LENGTH: u64 = 4800;
/// VMs at a time at the most.
const MOST: u64 = 48;

/// A place where one short-lived VM follows the other.
struct Lane {
    vm: Option<usize>,
    /// When it ends, or the next one begins.
    until: u64,
}

/// The trace.
pub fn trace(cpus: u16) -> Trace {
    let mut build = Build::new(Kind::Churn, cpus);
    // 640 MiB for each 8 vCPUs, which have half of the CPUs.
    let large = u64::from(cpus / 16);
    for _ in 0..large {
        build.start(Vm { pages: 512 * 320, vcpus: 8 });
    }
    let count = u64::from(cpus / 4).min(MOST - large);
    let mut lanes: Vec<_> = (0..count).map(|_| Lane { vm: None, until: build.rng.between(0, 20) }).collect();
    for tick in 0..LENGTH {
        for lane in lanes.iter_mut().filter(|lane| lane.until == tick) {
            match lane.vm.take() {
                // Up to 1 s.
                Some(vm) => {
                    build.stop(vm);
                    lane.until = tick + build.rng.between(1, 20);
                }
                // 16 to 64 MiB, for 1 to 19 s.
                None => {
                    let vm = Vm { pages: 512 * build.rng.between(8, 32), vcpus: build.rng.between(1, 2) as u8 };
                    lane.vm = Some(build.start(vm));
                    lane.until = tick + build.rng.between(20, 380);
                }
            }
        }
        build.tick();
    }
    build.finish()
}
