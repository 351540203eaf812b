//! Rules that are broken on purpose are found.

use caisson_host::{Mutant, sim};

/// Seeds that a broken rule may take.
const SEEDS: u64 = 200;

#[test]
fn every_broken_rule_is_found() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL {
        match sim::find(*mutant, SEEDS) {
            Some(failure) => println!("{mutant:?}: seed {}: {}", failure.seed, failure.what),
            None => unseen.push(mutant),
        }
    }
    assert!(unseen.is_empty(), "not found: {unseen:?}");
}
