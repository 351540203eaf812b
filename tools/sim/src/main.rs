//! Runs seeds of the simulated machine: `caisson-sim SEEDS FROM`. A program of its own, so that xtask doesn't need the
//! kernel and the services to build itself.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [seeds, from] = numbers[..] else {
        eprintln!("usage: caisson-sim SEEDS FROM");
        return ExitCode::from(5);
    };
    caisson_host::sim::main_like(seeds, from)
}
