//! Runs seeds of the simulated machine: `caisson-sim seeds SEEDS FROM JOBS`, or `mutants` in the place of `seeds`, or the name of a mutant.
//! A program of its own, so that xtask doesn't need the kernel and the services to build itself.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use caisson_host::{Mutant, campaign};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = arguments.iter().skip(1).map(|text| text.parse().ok()).collect();
    let (Some(what), Some(&[seeds, from, jobs])) = (arguments.first(), numbers.as_deref()) else {
        eprintln!("usage: caisson-sim seeds|mutants|MUTANT SEEDS FROM JOBS");
        return ExitCode::from(5);
    };
    let jobs = jobs as usize;
    match (what.as_str(), Mutant::named(what)) {
        ("seeds", _) => campaign::seeds(seeds, from, jobs),
        ("mutants", _) => campaign::mutants(seeds, jobs),
        ("none", _) => campaign::mutant(None, seeds, from, jobs),
        (_, Some(mutant)) => campaign::mutant(Some(mutant), seeds, from, jobs),
        (name, None) => {
            let names: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            eprintln!("there is no mutant {name}; there are none, {}", names.join(", "));
            ExitCode::from(5)
        }
    }
}
