//! Rules that are broken on purpose are found.

use caisson_host::{Config, Mutant, run};

/// Seeds that a broken rule may take.
const SEEDS: u64 = 60;

#[test]
fn every_broken_rule_is_found() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL {
        let found = (0..SEEDS).find_map(|seed| {
            let config = Config { mutant: Some(mutant), steps: 300_000, cpus: 4, ..Config::of_seed(seed) };
            run(seed, &config).err()
        });
        match found {
            Some(failure) => println!("{mutant:?}: seed {}: {}", failure.seed, failure.what),
            None => unseen.push(mutant),
        }
    }
    assert!(unseen.is_empty(), "not found: {unseen:?}");
}
