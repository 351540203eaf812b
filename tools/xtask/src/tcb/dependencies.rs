//! The crates that are linked into ring 0 beside ours, with their sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use super::lines;
use crate::failure::{Context, Failure};
use crate::paths::Paths;
use crate::setup::TARGET;

/// A crate from outside.
#[derive(Debug, Serialize)]
pub struct Dependency {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Lines of its source, all of them: how many are linked isn't known.
    pub lines: usize,
}

/// What `package` links on the bare machine.
pub fn of(paths: &Paths, package: &str) -> Result<Vec<Dependency>, Failure> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&paths.root).args(["tree", "--package", package, "--target", TARGET]);
    command.args(["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]);
    let tree = command.output().context("can't run cargo tree")?;
    if !tree.status.success() {
        return Err(Failure::setup(format!("cargo tree: {}", String::from_utf8_lossy(&tree.stderr).trim())));
    }
    let linked: BTreeSet<(String, String)> =
        String::from_utf8_lossy(&tree.stdout).lines().filter_map(package_line).collect();
    let sources = sources(paths)?;
    linked
        .into_iter()
        .map(|(name, version)| {
            let folder = sources.get(&(name.clone(), version.clone()));
            let lines = folder.map_or(Ok(0), |folder| size(Path::new(folder)))?;
            Ok(Dependency { name, version, lines })
        })
        .collect()
}

/// Name and version from "name v1.2.3 …"; a crate of the workspace, which has a path, is none.
fn package_line(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    (!line.contains('/')).then(|| (name.into(), version.into()))
}

/// Where each crate's source lies.
fn sources(paths: &Paths) -> Result<BTreeMap<(String, String), String>, Failure> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&paths.root).args(["metadata", "--format-version", "1"]);
    let output = command.output().context("can't run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    Ok(packages
        .map(|package| {
            let manifest = text(package, "manifest_path");
            let folder = Path::new(&manifest).parent().unwrap_or(Path::new("")).display().to_string();
            ((text(package, "name"), text(package, "version")), folder)
        })
        .collect())
}

fn size(folder: &Path) -> Result<usize, Failure> {
    let source = folder.join("src");
    if !source.is_dir() {
        return Ok(0);
    }
    super::rust_files(&source)?.iter().map(|path| super::read(path).map(|text| lines::count(&text).rust)).sum()
}
