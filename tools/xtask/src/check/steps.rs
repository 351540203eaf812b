//! The steps that need no machine.

use std::process::{Command, Output};

use super::Outcome;
use crate::debian;
use crate::paths::Paths;
use crate::setup::{self, TARGET};

/// Packages that are built for the machine. Those without a heap are apart: cargo gives each the features of all that
/// are in one call.
const MACHINE: [&[&str]; 2] = [&PLAIN, &["caisson-vmm"]];
const PLAIN: [&str; 18] = [
    "caisson-kernel",
    "caisson-hw",
    "caisson-qemu-boot",
    "caisson-rt",
    "caisson-supervisor",
    "caisson-memory",
    "caisson-notifier",
    "caisson-sev-firmware",
    "caisson-switch",
    "caisson-qemu-console",
    "caisson-qemu-bench",
    "caisson-qemu-psp",
    "caisson-guest-rt",
    "caisson-guest-exits",
    "caisson-guest-flat",
    "caisson-guest-private",
    "caisson-guest-hostile",
    "caisson-guest-intruder",
];
/// Packages whose tests model every order of what happens on several CPUs.
const LOOM: [&str; 2] = ["caisson-core", "caisson-rt"];
/// Packages with unsafe code or layouts that run on the host.
const MIRI: [&str; 2] = ["caisson-proto", "caisson-rt"];

pub(super) fn cargo(paths: &Paths, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&paths.root).args(arguments);
    command
}

/// Runs a command; its output is shown if it fails.
fn done(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("can't start: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{} ({})", describe(command), output.status))
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    format!("cargo {}", words.join(" "))
}

/// One check per command.
pub(super) fn each(commands: Vec<Command>) -> Outcome {
    let mut outcome = Outcome::default();
    for mut command in commands {
        match done(&mut command) {
            Ok(_) => outcome.passed += 1,
            Err(why) => outcome.failed.push(why),
        }
    }
    outcome
}

/// One check per test that `cargo test` reports.
pub(super) fn tests(command: &mut Command) -> Outcome {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Outcome::failed(format!("can't start: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut outcome = Outcome::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("test ")) {
        match line.rsplit_once(" ... ") {
            Some((_, "ok")) => outcome.passed += 1,
            Some((name, result)) if result.starts_with("FAILED") => outcome.failed.push(name.into()),
            _ => {}
        }
    }
    if !output.status.success() {
        println!("{text}{}", String::from_utf8_lossy(&output.stderr));
        if outcome.failed.is_empty() {
            outcome.failed.push(format!("{} ({})", describe(command), output.status));
        }
    }
    outcome
}

/// rustfmt has nothing to change.
pub fn fmt(paths: &Paths) -> Outcome {
    each(vec![cargo(paths, &["fmt", "--all", "--check"])])
}

/// clippy has nothing to say.
pub fn clippy(paths: &Paths) -> Outcome {
    if let Err(failure) = setup::toolchain() {
        return Outcome::failed(failure.text);
    }
    let quiet = ["clippy", "--quiet", "--keep-going"];
    let mut host = cargo(paths, &quiet);
    host.arg("--all-targets");
    let mut commands = vec![host];
    commands.extend(machine(paths, &quiet));
    commands.iter_mut().for_each(|command| {
        command.args(["--", "-D", "warnings"]);
    });
    each(commands)
}

/// A command for all packages for the machine.
fn machine<'a>(paths: &'a Paths, arguments: &'a [&str]) -> impl Iterator<Item = Command> + 'a {
    MACHINE.iter().map(move |packages| {
        let mut command = cargo(paths, arguments);
        command.args(["--target", TARGET]).args(packages.iter().flat_map(|package| ["--package", package]));
        command
    })
}

/// Unit and property tests, and the one that boots the guest without Caisson.
pub fn host(paths: &Paths) -> Outcome {
    if let Err(failure) = debian::guest_files(paths, debian::KERNEL) {
        return Outcome::failed(failure.text);
    }
    tests(&mut cargo(
        paths,
        &[
            "test",
            "--workspace",
            "--exclude",
            "caisson-book",
            "--exclude",
            "caisson-hw",
            "--no-fail-fast",
            "--",
            "--include-ignored",
        ],
    ))
}

/// Every fuzz target, for some seconds; one check each.
pub fn fuzz(paths: &Paths) -> Outcome {
    match crate::fuzz::check(paths) {
        Ok((passed, failed)) => Outcome { passed, failed, ..Outcome::default() },
        Err(failure) => Outcome::failed(failure.text),
    }
}

/// rustdoc without warnings.
pub fn doc(paths: &Paths) -> Outcome {
    let quiet = ["doc", "--quiet", "--no-deps", "--keep-going"];
    let mut commands = vec![cargo(paths, &quiet)];
    commands.extend(machine(paths, &quiet));
    commands.iter_mut().for_each(|command| {
        command.env("RUSTDOCFLAGS", "-D warnings");
    });
    each(commands)
}

/// The book builds.
pub fn book(paths: &Paths) -> Outcome {
    match crate::book::build(paths) {
        Ok(_) => Outcome::passed(1),
        Err(failure) => Outcome::failed(failure.text),
    }
}

/// Ring 0 keeps to its bounds.
pub fn tcb(paths: &Paths) -> Outcome {
    match crate::tcb::tcb(paths, false, false) {
        Ok(()) => Outcome::passed(1),
        Err(failure) => Outcome::failed(failure.text),
    }
}

/// What several CPUs share, in every order.
pub fn loom(paths: &Paths) -> Outcome {
    let mut command = cargo(paths, &["test", "--release", "--test", "loom"]);
    command.args(LOOM.iter().flat_map(|package| ["--package", package]));
    command.arg("--target-dir").arg(paths.target.join("loom"));
    command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", "3");
    tests(&mut command)
}

/// Layouts, codecs and the rings under Miri, where a nightly toolchain has it or can get it.
pub fn miri(paths: &Paths) -> Outcome {
    let nightly = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(arguments).current_dir(&paths.root);
        command.output().is_ok_and(|output| output.status.success())
    };
    let there = || nightly(&["run", "nightly", "cargo", "miri", "--version"]);
    let get = || nightly(&["component", "add", "--toolchain", "nightly", "miri", "rust-src"]);
    let has_miri = there() || (get() && there());
    if !has_miri {
        return Outcome::skipped("no nightly toolchain with Miri; `rustup toolchain install nightly -c miri,rust-src`");
    }
    let mut command = Command::new("rustup");
    command.current_dir(&paths.root).args(["run", "nightly", "cargo", "miri", "test"]);
    command.args(MIRI.iter().flat_map(|package| ["--package", package]));
    command.arg("--target-dir").arg(paths.target.join("miri"));
    // What cargo said to this process is about another toolchain.
    for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC"] {
        command.env_remove(name);
    }
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "4");
    tests(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_for_the_machine_is_in_the_workspace() {
        let workspace = include_str!("../../../../Cargo.toml");
        for package in MACHINE.iter().copied().flatten().filter(|name| **name != "caisson-kernel") {
            let place = package.replace("caisson-guest-", "tools/guests/").replace("caisson-qemu-", "board/qemu/");
            assert!(workspace.contains(&place), "{package}");
        }
    }
}
