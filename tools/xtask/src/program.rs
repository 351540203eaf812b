//! Small programs of their own that xtask builds and runs, so that it doesn't need the kernel and the simulated machine to build itself.

use std::process::Command;

use crate::failure::{Context, Failure, Status};
use crate::paths::Paths;
use crate::progress::quietly;

/// Builds a program and runs it with these arguments; its output is the user's. It ends with 0; with 1 for `failed`; with 5 if it
/// wasn't begun.
pub fn run(
    paths: &Paths, package: &str, arguments: impl IntoIterator<Item = String>, failed: &str,
) -> Result<(), Failure> {
    let cargo = |word: &str| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(&paths.root).args([word, "--quiet", "--release", "--package", package]);
        command
    };
    quietly(&format!("building {package}"), &mut cargo("build"), Status::BadSetup)?;
    let status = cargo("run").arg("--").args(arguments).status().context("can't start cargo")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(Failure::new(Status::Failed, failed)),
        Some(5) => Err(Failure::new(Status::BadSetup, format!("{package} wasn't begun"))),
        _ => Err(Failure::new(Status::Failed, format!("{package} ended early ({status})"))),
    }
}
