//! `cargo xtask book`: the book in docs/, built by mdBook as a library in a small program of its own.

use std::path::PathBuf;
use std::process::Command;

use crate::failure::{Failure, Status};
use crate::paths::Paths;
use crate::progress::quietly;

/// Builds the book; says where it is.
pub fn build(paths: &Paths) -> Result<PathBuf, Failure> {
    let out = paths.target.join("book");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&paths.root).args(["run", "--quiet", "--package", "caisson-book", "--"]);
    command.arg(paths.root.join("docs")).arg(&out);
    quietly("building the book", &mut command, Status::Failed)?;
    Ok(out)
}
