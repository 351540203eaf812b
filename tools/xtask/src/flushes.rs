//! `cargo xtask bench flushes`: cache flushes under several policies, counted by a small program of its own.

use std::process::Command;

use crate::cli::FlushesArgs;
use crate::failure::{Context, Failure, Status};
use crate::paths::Paths;
use crate::progress::quietly;

/// Counts; tables or JSON go to standard output.
pub fn flushes(paths: &Paths, args: &FlushesArgs) -> Result<(), Failure> {
    let cargo = |word: &str| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(&paths.root).args([word, "--quiet", "--release", "--package", "caisson-flushes"]);
        command
    };
    quietly("building the traces", &mut cargo("build"), Status::BadSetup)?;
    let mut command = cargo("run");
    command.arg("--");
    if args.book {
        command.arg("book").arg(paths.root.join("docs/src"));
    } else {
        command.arg(if args.json { "json" } else { "tables" }).args(args.cpus.iter().map(u16::to_string));
    }
    let status = command.status().context("can't start cargo")?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(Status::Failed, format!("a trace couldn't be played to its end ({status})")))
}
