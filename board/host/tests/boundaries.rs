//! memory, and notifier, die at each step of what memory does for a vmm that changes its guest's memory.

use caisson_host::{Config, run};

/// Steps at which they die, one in each run.
const STEPS: u64 = 60;
const SEED: u64 = 0;

#[test]
fn a_death_at_any_step_leaves_nothing_half_done() {
    let changing = Config {
        cpus: 2,
        vms: 1,
        vcpus: 2,
        guest_pages: 48,
        encrypted: false,
        actions: 150,
        changes: 3,
        deaths: 0,
        mortal: 0,
        reclaims: 0,
        resets: 0,
        events: 0,
        fewest: 0,
        ..Config::of_seed(SEED)
    };
    let mut died = 0;
    for at in 1..=STEPS {
        for dies_at in [[at, 0], [0, at]] {
            let report = run(SEED, &Config { dies_at, ..changing }).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(report.settled, "{report:?}");
            died += u64::from(report.ends.faulted > 0);
        }
    }
    assert!(died > STEPS, "only {died} deaths in {} runs", STEPS * 2);
}
