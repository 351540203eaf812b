//! `cargo xtask sim`: seeds of the simulated machine, by a small program.

use crate::cli::SimArgs;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::program;

/// Runs seeds; what happened is on standard output, a broken rule on standard error.
pub fn sim(paths: &Paths, args: &SimArgs) -> Result<(), Failure> {
    let (what, failed) = match &args.mutant {
        Some(name) if name == "none" => (vec!["mutant".into(), name.clone()], "a seed broke a rule"),
        Some(name) => (vec!["mutant".into(), name.clone()], "the broken rule wasn't found"),
        None if args.mutants => (vec!["mutants".into()], "a broken rule wasn't found, or one where none was broken"),
        None => (vec!["seeds".into()], "a seed broke a rule"),
    };
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let numbers = [args.seeds, args.from, args.jobs.unwrap_or(cpus)].map(|number| number.to_string());
    program::run(paths, "caisson-sim", what.into_iter().chain(numbers), failed)
}
