//! Runs seeds of the simulated machine: `caisson-sim SEEDS FROM`, or `caisson-sim --mutants SEEDS`. A program of its own, so that xtask doesn't need the
//! kernel and the services to build itself.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let mutants = std::env::args().nth(1).is_some_and(|first| first == "--mutants");
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    match numbers[..] {
        [seeds, from] => caisson_host::campaign::seeds(seeds, from),
        [seeds] if mutants => caisson_host::campaign::mutants(seeds),
        _ => {
            eprintln!("usage: caisson-sim SEEDS FROM | --mutants SEEDS");
            ExitCode::from(5)
        }
    }
}
