//! Seeds.

use caisson_host::{Config, run};

/// Runs seeds; `SEEDS` and `FROM` choose others than the usual ones.
#[test]
fn no_seed_breaks_a_rule() {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seeds, from) = (number("SEEDS", 200), number("FROM", 0));
    let (mut settled, mut exits, mut steps) = (0, 0, 0);
    for seed in from..from + seeds {
        match run(seed, &Config::of_seed(seed)) {
            Ok(report) => {
                settled += u64::from(report.settled);
                exits += report.exits;
                steps += report.steps;
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{seeds} seeds: {steps} steps, {exits} VM exits, {settled} settled");
    assert!(settled > seeds / 2, "of {seeds} runs only {settled} came to their usual end");
    assert!(exits > seeds * 10);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 14, 159] {
        let config = Config { deaths: 4, reclaims: 6, preemption: 8, ..Config::of_seed(seed) };
        let (once, again) = (run(seed, &config).unwrap(), run(seed, &config).unwrap());
        assert_eq!(once, again);
        assert_ne!(once.digest, run(seed + 1, &config).unwrap().digest);
    }
}

#[test]
fn two_hundred_and_fifty_six_cpus_get_along() {
    let config = Config { cpus: 256, vms: 8, vcpus: 8, frames: 512 * 24, deaths: 3, actions: 80, ..Config::of_seed(1) };
    for seed in 0..3 {
        let report = run(seed, &config).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.exits > 100, "{report:?}");
    }
}
