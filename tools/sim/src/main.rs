//! Runs seeds of the simulated machine: `caisson-sim seeds|mutants|mutant NAME SEEDS FROM JOBS`. A program of its own,
//! so that xtask doesn't need the kernel and the simulated machine to build itself.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use caisson_host::{Mutant, campaign};

const USAGE: &str = "usage: caisson-sim seeds|mutants|mutant NAME SEEDS FROM JOBS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (what, numbers) = words.split_at(words.len().saturating_sub(3));
    let numbers: Option<Vec<u64>> = numbers.iter().map(|text| text.parse().ok()).collect();
    let Some(&[seeds, from, jobs]) = numbers.as_deref() else { return refused(USAGE) };
    let jobs = jobs as usize;
    match what {
        ["seeds"] => campaign::seeds(seeds, from, jobs),
        ["mutants"] => campaign::mutants(seeds, jobs),
        ["mutant", "none"] => campaign::mutant(None, seeds, from, jobs),
        ["mutant", name] => match Mutant::named(name) {
            Some(mutant) => campaign::mutant(Some(mutant), seeds, from, jobs),
            None => {
                let names: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
                refused(&format!("there is no mutant {name}; there are none, {}", names.join(", ")))
            }
        },
        _ => refused(USAGE),
    }
}

fn refused(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(5)
}
