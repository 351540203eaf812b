//! Rules that are broken on purpose are found.

use caisson_host::{Mutant, campaign};

/// Seeds that a broken rule may take. Some dozens are enough for all, but a change of the kernel moves them.
const SEEDS: u64 = 2000;

#[test]
fn every_broken_rule_is_found() {
    let (mut unseen, mut last) = (Vec::new(), 0);
    for mutant in Mutant::ALL {
        match campaign::find(Some(*mutant), SEEDS, 0, 1) {
            Some(failure) => {
                println!("{mutant:?}: seed {}: {}", failure.seed, failure.what);
                last = failure.seed.max(last);
            }
            None => unseen.push(mutant),
        }
    }
    let none = campaign::find(None, last + 1, 0, 1);
    assert!(none.is_none(), "a machine in which nothing is broken breaks a rule: {none:?}");
    assert!(unseen.is_empty(), "not found: {unseen:?}");
}
