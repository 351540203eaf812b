//! Rules that are broken on purpose are found.

use caisson_host::Mutant::{self, *};
use caisson_host::campaign;

/// Seeds that a broken rule may take.
const SEEDS: u64 = 60;
/// Those that so few seeds don't show reliably. `cargo xtask sim --mutants` tries them with more, and fails for them.
const NOT_YET: &[Mutant] = &[SampleEarly, ClearEarly, LateDeactivation];

#[test]
fn every_broken_rule_is_found() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL.iter().filter(|mutant| !NOT_YET.contains(mutant)) {
        match campaign::find(Some(*mutant), SEEDS, 0, 1) {
            Some(failure) => println!("{mutant:?}: seed {}: {}", failure.seed, failure.what),
            None => unseen.push(mutant),
        }
    }
    assert!(campaign::find(None, SEEDS / 3, 0, 1).is_none(), "a machine in which nothing is broken breaks a rule");
    assert!(unseen.is_empty(), "not found: {unseen:?}");
}
