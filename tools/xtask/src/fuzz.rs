//! `cargo xtask fuzz`: searches for inputs that break something which decodes what others say.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::FuzzArgs;
use crate::failure::{Context, Failure, Status};
use crate::paths::{Paths, make_folder, program};
use crate::progress::quietly;

const PACKAGE: &str = "caisson-fuzz";
/// What the program with coverage is built for; it can't be the machine's own setting, or build scripts get the flags, too.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// What LLVM adds for libFuzzer: counters, where they are, and what is compared.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// The longest input, in bytes.
const MAX_BYTES: u32 = 4096;
/// An input that takes longer is broken, in seconds.
const LIMIT: u32 = 60;

/// Inputs that stay: those that reach furthest, and those that once broke something.
fn corpus(paths: &Paths, target: &str) -> PathBuf {
    paths.root.join("tools/fuzz/corpus").join(target)
}

/// Inputs that broke something.
fn broken(paths: &Paths) -> PathBuf {
    paths.target.join("fuzz-broken")
}

fn cargo(paths: &Paths) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&paths.root).args(["build", "--quiet", "--profile", "fuzz", "--package", PACKAGE]);
    command
}

/// Builds the program that needs no engine.
fn plain(paths: &Paths) -> Result<PathBuf, Failure> {
    quietly("building the fuzz targets", &mut cargo(paths), Status::BadSetup)?;
    Ok(paths.target.join("fuzz").join(PACKAGE))
}

/// Builds the program with coverage; `None` without a compiler for libFuzzer's C++.
fn with_coverage(paths: &Paths) -> Result<Option<PathBuf>, Failure> {
    if program("c++").is_none() && std::env::var_os("CXX").is_none() {
        return Ok(None);
    }
    let name = format!("{PACKAGE}-coverage");
    let target = paths.target.join("fuzz-coverage");
    let mut command = cargo(paths);
    command.args(["--features", "coverage", "--bin", &name, "--target", HOST, "--target-dir"]).arg(&target);
    command.env("RUSTFLAGS", FLAGS);
    quietly("building the fuzz targets with coverage", &mut command, Status::BadSetup)?;
    Ok(Some(target.join(HOST).join("fuzz").join(name)))
}

/// Names of the targets, with what they are.
fn targets(program: &Path) -> Result<Vec<(String, String)>, Failure> {
    let output = Command::new(program).arg("list").output().context("can't start the fuzz targets")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let split = |line: &str| line.split_once(' ').map(|(name, about)| (name.to_owned(), about.trim().to_owned()));
    Ok(text.lines().filter_map(split).collect())
}

/// Lists, replays or searches.
pub fn fuzz(paths: &Paths, args: &FuzzArgs) -> Result<(), Failure> {
    let plain = plain(paths)?;
    let all = targets(&plain)?;
    if args.list {
        all.iter().for_each(|(name, about)| println!("{name:<14}{about}"));
        return Ok(());
    }
    if let Some(target) = args.target.as_ref().filter(|target| !all.iter().any(|(name, _)| name == *target)) {
        let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        let meant = caisson_manifest::parse::suggestion(target, &known);
        return Err(Failure::setup(format!("no fuzz target is named \"{target}\"{meant}")));
    }
    if let (Some(target), [_, ..]) = (&args.target, args.inputs.as_slice()) {
        let status = Command::new(&plain).args(["replay", target]).args(&args.inputs).status();
        return verdict(status.context("can't start the fuzz targets")?.success(), target, paths);
    }
    let wanted: Vec<&String> =
        all.iter().map(|(name, _)| name).filter(|name| args.target.as_ref().is_none_or(|only| only == *name)).collect();
    let seconds = (args.seconds / wanted.len() as u64).max(1);
    match with_coverage(paths)? {
        Some(program) => wanted.iter().try_for_each(|target| cover(paths, &program, target, seconds)),
        None => {
            eprintln!("no C++ compiler for libFuzzer: searching without coverage; `apt-get install g++` helps");
            wanted.iter().try_for_each(|target| search(paths, &plain, target, 1, 0).map(|line| println!("{line}")))
        }
    }
}

fn verdict(well: bool, target: &str, paths: &Paths) -> Result<(), Failure> {
    if well {
        return Ok(());
    }
    let folder = broken(paths);
    Err(Failure::new(
        Status::Failed,
        format!("an input breaks {target}; what broke something is in {}", folder.display()),
    ))
}

/// What replays an input.
fn replays(target: &str, input: &str) -> String {
    format!("replay it with: cargo xtask fuzz {target} {input}")
}

/// A search with coverage. What it finds is kept beside what is known, in the target folder.
fn cover(paths: &Paths, program: &Path, target: &str, seconds: u64) -> Result<(), Failure> {
    let (found, broken) = (paths.target.join("fuzz-found").join(target), broken(paths));
    make_folder(&found)?;
    make_folder(&broken)?;
    let known = corpus(paths, target);
    println!("{target}: {seconds} s");
    let mut command = Command::new(program);
    command.arg(&found).args(known.is_dir().then_some(&known)).env("CAISSON_FUZZ_TARGET", target);
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_BYTES}"),
        format!("-timeout={LIMIT}"),
        format!("-artifact_prefix={}/{target}-", broken.display()),
        "-print_final_stats=1".into(),
    ]);
    let output = command.stdin(Stdio::null()).output().context("can't start libFuzzer")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("?");
    let covered = text
        .lines()
        .rev()
        .find_map(|line| line.split_once("cov: "))
        .map_or("?", |(_, rest)| rest.split(' ').next().unwrap_or("?"));
    println!("  {} inputs, {covered} places covered", value("stat::number_of_executed_units:"));
    if output.status.success() {
        return Ok(());
    }
    println!("{}", text.trim_end());
    let saved = text.lines().find_map(|line| line.rsplit_once("Test unit written to ")).map(|(_, path)| path.trim());
    saved.into_iter().for_each(|input| println!("{}", replays(target, input)));
    verdict(false, target, paths)
}

/// A search without coverage; 0 runs are as many as the target has for a bounded run. The line that says what was done.
fn search(paths: &Paths, program: &Path, target: &str, seed: u64, runs: u64) -> Result<String, Failure> {
    let mut command = Command::new(program);
    command.args(["search", target]).args([seed, runs].map(|number| number.to_string()));
    let output =
        command.arg(broken(paths)).arg(corpus(paths, target)).output().context("can't start the fuzz targets")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(text.trim().to_owned());
    }
    println!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    let saved = text.lines().find_map(|line| line.strip_prefix("broken "));
    saved.into_iter().for_each(|input| println!("{}", replays(target, input)));
    verdict(false, target, paths).map(|()| String::new())
}

/// A bounded run of every target, without coverage: the same inputs each time. How many targets hold, and what doesn't.
pub fn check(paths: &Paths) -> Result<(usize, Vec<String>), Failure> {
    let program = plain(paths)?;
    let (mut held, mut failed) = (0, Vec::new());
    for (target, _) in targets(&program)? {
        match search(paths, &program, &target, 1, 0) {
            Ok(_) => held += 1,
            Err(failure) => failed.push(failure.text),
        }
    }
    Ok((held, failed))
}
