//! The secure processor before programs that nobody here wrote, where the machine has what they need.

use std::path::Path;
use std::process::Command;

use super::{Outcome, steps};
use crate::paths::Paths;
use crate::setup;

/// PyPI's tool, and the release that the vectors were made with.
const TOOL: (&str, &str) = ("sev-snp-measure", "0.0.13");
const SCRIPT: &str = "board/qemu/psp/tests/vectors/make.py";

/// The `sev` crate with OpenSSL as a guest's owner.
pub fn owner(paths: &Paths) -> Outcome {
    let there = || quiet(Path::new("pkg-config"), &["--exists", "openssl"]);
    if !there() {
        match setup::install(&["libssl-dev", "pkg-config"]) {
            Ok(()) if there() => {}
            Ok(()) => return Outcome::skipped("pkg-config finds no OpenSSL, though libssl-dev is installed"),
            Err(failure) => return Outcome::skipped(format!("no OpenSSL to build with. {}", failure.text)),
        }
    }
    let package = ["--package", "caisson-judges", "--features", "openssl"];
    // The steps for all packages leave these tests out: they need the feature.
    let mut lints = steps::cargo(paths, &["clippy", "--quiet", "--all-targets"]);
    lints.args(package).args(["--", "-D", "warnings"]);
    let lints = steps::each(vec![lints]);
    let mut outcome = steps::tests(steps::cargo(paths, &["test"]).args(package));
    outcome.passed += lints.passed;
    outcome.failed.extend(lints.failed);
    outcome
}

/// `sev-snp-measure` still says what the committed digests say.
pub fn digests(paths: &Paths) -> Outcome {
    let environment = paths.target.join("judges");
    let own = environment.join("bin/python");
    let (tool, release) = TOOL;
    let asked = format!("import importlib.metadata as m; assert m.version('{tool}') == '{release}'");
    let has_tool = || quiet(&own, &["-c", &asked]);
    let venv = || quiet(Path::new("python3"), &["-m", "venv", &environment.to_string_lossy()]);
    let pip = ["-m", "pip", "install", "--quiet", "--retries=1", &format!("{tool}=={release}")];
    // Debian's python3 can't do the first without a package.
    let made = has_tool()
        || ((venv() || (setup::install(&["python3-venv"]).is_ok() && venv())) && quiet(&own, &pip) && has_tool());
    if !made {
        return Outcome::skipped(format!("no {tool} {release}: that takes PyPI, and on Debian python3-venv"));
    }
    match Command::new(&own).current_dir(&paths.root).args([SCRIPT, "--check"]).output() {
        Ok(output) if output.status.success() => Outcome::passed(1),
        Ok(output) => {
            let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            Outcome::failed(format!("{SCRIPT}: {}{}", out.trim(), error.trim()))
        }
        Err(error) => Outcome::failed(format!("{SCRIPT}: {error}")),
    }
}

fn quiet(program: &Path, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}
