//! Boot storms: a SEV guest that reboots is a new VM. All do so within some seconds, as after an update; five times.

use super::{Build, Kind, Trace, Vm};

const WAVES: u64 = 5;
/// Ticks from a wave's beginning until the last VM reboots: 10 s.
const SPREAD: u64 = 200;
/// Ticks that a reboot takes: 200 ms.
const REBOOT: u64 = 4;
/// Ticks after a wave: 20 s.
const QUIET: u64 = 400;

/// The trace.
pub fn trace(cpus: u16) -> Trace {
    let mut build = Build::new(Kind::Storm, cpus);
    let count = u64::from(cpus / 2).min(48);
    let mut vms = Vec::new();
    for _ in 0..count {
        // 64 to 256 MiB.
        let vm = Vm { pages: 512 * build.rng.between(32, 128), vcpus: 1 << build.rng.between(0, 2) };
        vms.push((vm, build.start(vm)));
    }
    for _ in 0..WAVES {
        build.ticks(QUIET);
        let when: Vec<_> = (0..count).map(|_| build.rng.between(0, SPREAD)).collect();
        for tick in 0..=SPREAD + REBOOT {
            for (at, (vm, number)) in when.iter().zip(&mut vms) {
                if *at == tick {
                    build.stop(*number);
                } else if *at + REBOOT == tick {
                    *number = build.start(*vm);
                }
            }
            build.tick();
        }
    }
    build.ticks(QUIET);
    build.finish()
}
