//! Seeds.

use caisson_host::{Config, run};

/// Runs seeds; `SEEDS` and `FROM` choose others than the usual ones.
#[test]
fn no_seed_breaks_a_rule() {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seeds, from) = (number("SEEDS", 150), number("FROM", 0));
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
