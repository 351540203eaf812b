//! Rules that are broken on purpose are found.

use caisson_host::{Config, Mutant, run};

/// Seeds that a broken rule may take.
const SEEDS: u64 = 60;

#[test]
fn every_broken_rule_is_found() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL {
        let found = (0..SEEDS).find_map(|seed| {
            let usual = Config { mutant: Some(mutant), steps: 300_000, cpus: 4, ..Config::of_seed(seed) };
            // Some are seen only where much is taken from living VMs.
            let config = if seed % 2 == 0 { usual } else { Config { vms: 1, actions: 200, reclaims: 60, ..usual } };
            run(seed, &config).err()
        });
        match found {
            Some(failure) => println!("{mutant:?}: seed {}: {}", failure.seed, failure.what),
            None => unseen.push(mutant),
        }
    }
    assert!(unseen.is_empty(), "not found: {unseen:?}");
}
