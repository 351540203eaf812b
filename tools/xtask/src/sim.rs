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
    command.arg("--");
    if args.mutants {
        command.args(["--mutants".into(), args.seeds.to_string()]);
    } else {
        command.args([args.seeds, args.from].map(|number| number.to_string()));
    }
    let status = command.status().context("can't start cargo")?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(
        Status::Failed,
        format!("a seed broke a rule, a broken rule wasn't found, or it wasn't finished ({status})"),
    ))
}
