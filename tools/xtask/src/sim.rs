//! `cargo xtask sim`: seeds of the simulated machine, by a small program of its own.

use std::process::Command;

use crate::cli::SimArgs;
use crate::failure::{Context, Failure, Status};
use crate::paths::Paths;
use crate::progress::quietly;

/// Runs seeds; what happened is on standard output, a broken rule on standard error.
pub fn sim(paths: &Paths, args: &SimArgs) -> Result<(), Failure> {
    let cargo = |word: &str| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(&paths.root).args([word, "--quiet", "--release", "--package", "caisson-sim"]);
        command
    };
    quietly("building the simulation", &mut cargo("build"), Status::BadSetup)?;
    let mut command = cargo("run");
    let what = match &args.mutant {
        Some(name) => name.as_str(),
        None if args.mutants => "mutants",
        None => "seeds",
    };
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    command
        .args(["--", what])
        .args([args.seeds, args.from, args.jobs.unwrap_or(cpus)].map(|number| number.to_string()));
    let status = command.status().context("can't start cargo")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(5) => Err(Failure::new(Status::BadSetup, "the simulation wasn't begun")),
        _ => Err(Failure::new(
            Status::Failed,
            format!("a seed broke a rule, a broken rule wasn't found, or it wasn't finished ({status})"),
        )),
    }
}
