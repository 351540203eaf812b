//! Statistics of two Linux guests are read while they work, as a person reads them: by `cargo xtask stats` at a machine that
//! `cargo xtask run` has. The rules of Linux's own test judge them, and what they say has to add up.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use caisson_memory::overhead;
use caisson_stats::read::Kind;
use caisson_stats::{Block, judge};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Outcome, machines};
use crate::paths::Paths;
use crate::stats::{Machine, Vm, find};

/// How long the guests may take to work.
const BOOT: Duration = Duration::from_secs(360);
/// How long until counters must have grown.
const SOON: Duration = Duration::from_secs(60);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(300);
/// The guests' memory in pages.
const PAGES: u64 = (256 << 20) >> 12;
/// Touches memory, writes to the console and sleeps, for as long as the check takes.
const WORK: &str =
    "while true; do dd if=/dev/zero of=/tmp/a bs=1M count=40 2>/dev/null; rm /tmp/a; seq 1 50; sleep 1; done";
/// A run that is ended with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// The whole step.
pub fn run(paths: &Paths) -> Outcome {
    let mut outcome = Outcome::default();
    let parts = [("read", read as fn(&Paths) -> Result<usize, String>), ("without a share", without)];
    for (name, done) in parts.map(|(name, part)| (name, part(paths))) {
        match done {
            Ok(checks) => outcome.passed += checks,
            Err(why) => outcome.failed.push(format!("{name}: {why}")),
        }
    }
    outcome
}

fn text<E: ToString>(error: E) -> String {
    error.to_string()
}

/// Boots guests "a" with 2 vCPUs and "b" with 1.
fn boot(paths: &Paths, folder: &Path, manifest: Option<&str>) -> Result<(Running, Machine), String> {
    let mut command = Command::new(machines::program()?);
    command.current_dir(&paths.root).args(["run", "--timeout", "900", "--script"]).arg(folder.join("script"));
    std::fs::write(folder.join("script"), WORK).map_err(text)?;
    for (name, vcpus) in [("a", 2), ("b", 1)] {
        let file = folder.join(name).with_extension("toml");
        std::fs::write(&file, format!("vcpus = {vcpus}\nmemory = \"256M\"\n")).map_err(text)?;
        command.arg("--vm").arg(file);
    }
    if let Some(manifest) = manifest {
        std::fs::write(folder.join("system.toml"), manifest).map_err(text)?;
        command.arg("--manifest").arg(folder.join("system.toml"));
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(text)?;
    let mut running = Running(child);
    let pid = running.0.id();
    let start = Instant::now();
    loop {
        if let Ok(machine) = find(paths, Some(pid)) {
            return Ok((running, machine));
        }
        if let Ok(Some(status)) = running.0.try_wait() {
            return Err(format!("the machine ended: {status}"));
        }
        if start.elapsed() > BOOT {
            return Err("no machine runs".into());
        }
        std::thread::sleep(LOOK);
    }
}

/// Reads again and again until something is so.
fn until(
    machine: &Machine, number: usize, what: &str, within: Duration, so: impl Fn(&Vm) -> bool,
) -> Result<Vm, String> {
    let start = Instant::now();
    loop {
        let last = match machine.read(number, "") {
            Ok(Some(vm)) if so(&vm) => return Ok(vm),
            Ok(Some(vm)) => format!("{:?}", vm.blocks.iter().map(|(_, block)| block).collect::<Vec<_>>()),
            Ok(None) => return Err(format!("the machine ended before {what}")),
            // It boots, and there is no block yet.
            Err(failure) => failure.text,
        };
        if start.elapsed() > within {
            return Err(format!("not {what}: {last}"));
        }
        std::thread::sleep(LOOK);
    }
}

fn value(block: &Block, name: &str) -> Result<u64, String> {
    block.value(name).ok_or_else(|| format!("{} has no \"{name}\"", block.id))
}

/// Each block is one, and they are those of this VM.
fn are_its(vm: &Vm, name: &str, vcpus: u8) -> Result<(), String> {
    for (bytes, block) in &vm.blocks {
        judge(bytes).map_err(|broken| format!("{}: {broken}", block.id))?;
    }
    let ids: Vec<&str> = vm.blocks.iter().map(|(_, block)| block.id.as_str()).collect();
    let of_vcpus = (0..vcpus).map(|index| format!("kvm-{name}/vcpu-{index}"));
    if ids != [format!("kvm-{name}")].into_iter().chain(of_vcpus).collect::<Vec<_>>() {
        return Err(format!("blocks of {ids:?}"));
    }
    Ok(())
}

/// What it has and what it was promised beyond that are what memory promised when it was made.
fn frames_add_up(vm: &Vm, vcpus: u8) -> Option<bool> {
    let block = vm.blocks.first().map(|(_, block)| block)?;
    let frames = ["frames_mapped", "frames_kernel", "frames_promised", "frames_reclaimed"];
    let sum = frames.iter().map(|name| block.value(name)).sum::<Option<u64>>()?;
    let pages = PAGES + caisson_vmm::ASIDE_PAGES;
    let mapped = block.value("frames_mapped").is_some_and(|mapped| mapped > 0 && mapped <= pages);
    Some(mapped && sum == pages + overhead(pages, vcpus) && block.value("memory")? == PAGES << 12)
}

/// The exits of a reading are those by their reasons, and nobody woke more often than it halted.
fn exits_add_up(read: &Vm) -> Result<(), String> {
    for block in read.vcpus() {
        let sum = |so: &dyn Fn(&str) -> bool| -> u64 {
            block.stats.iter().filter(|stat| so(&stat.name)).flat_map(|stat| &stat.values).sum()
        };
        // WBINVDs are the kernel's.
        let is_reason = |name: &str| matches!(name, "pf_taken" | "hypercalls") || name.ends_with("_exits");
        let reasons = sum(&|name| is_reason(name) && name != "wbinvd_exits");
        let (exits, waits) = (value(block, "exits")?, sum(&|name| name == "halt_wait_hist"));
        if reasons != exits || waits == 0 || waits > value(block, "halt_exits")? + 1 {
            return Err(format!("{}: {exits} exits, {reasons} by reason, {waits} halts that ended", block.id));
        }
    }
    Ok(())
}

/// No counter of `before` is greater than in `after`.
fn grew(before: &Vm, after: &Vm) -> Result<(), String> {
    for ((_, before), (_, after)) in before.blocks.iter().zip(&after.blocks) {
        for (old, new) in before.stats.iter().zip(&after.stats) {
            let counts = matches!(old.kind, Kind::Cumulative | Kind::Log);
            if counts && old.values.iter().zip(&new.values).any(|(old, new)| new < old) {
                return Err(format!("{}: {} was {:?} and is {:?}", before.id, old.name, old.values, new.values));
            }
        }
    }
    Ok(())
}

fn asks(paths: &Paths, arguments: &[&str]) -> Result<Output, String> {
    let mut command = Command::new(machines::program()?);
    command.current_dir(&paths.root).arg("stats").args(arguments).stdin(Stdio::null()).output().map_err(text)
}

/// Asks what has to be refused with this exit status and words in the last line.
fn refused(paths: &Paths, arguments: &[&str], status: i32, says: &str) -> Result<(), String> {
    let output = asks(paths, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    if output.status.code() == Some(status) && last.contains(says) && output.stdout.is_empty() {
        return Ok(());
    }
    Err(format!("{arguments:?}: {}, and it said: {last}", output.status))
}

/// Reads both guests. How many checks passed.
fn read(paths: &Paths) -> Result<usize, String> {
    let folder = tempfile::tempdir().map_err(text)?;
    let (running, machine) = boot(paths, folder.path(), None)?;
    let mut checks = 0;
    let total = |vm: &Vm, name: &str| vm.vcpus().filter_map(|block| block.value(name)).sum::<u64>();
    for (number, name, vcpus) in [(1, "a", 2), (2, "b", 1)] {
        // The shell works: it wrote to its console and slept.
        let before = until(&machine, number, "a guest that works", BOOT, |vm| {
            total(vm, "io_exits") > 500 && total(vm, "halt_exits") > 50 && total(vm, "pf_fixed") > 20
        })?;
        are_its(&before, name, vcpus)?;
        let exits = ["exits", "io_exits", "halt_exits", "irq_injections", "timer_exits", "msr_exits"];
        let more = |vm: &Vm| exits.iter().all(|name| total(vm, name) > total(&before, name));
        let after = until(&machine, number, "more exits", SOON, more)?;
        are_its(&after, name, vcpus)?;
        grew(&before, &after)?;
        exits_add_up(&after)?;
        until(&machine, number, "frames that add up", SOON, |vm| frames_add_up(vm, vcpus) == Some(true))?;
        checks += 5;
    }
    let pid = running.0.id().to_string();
    let raw = folder.path().join("raw");
    let raw_name = raw.display().to_string();
    let output = asks(paths, &["--pid", &pid, "--vm", "b", "--vcpu", "0", "--raw", &raw_name])?;
    let bytes = std::fs::read(&raw).map_err(text)?;
    judge(&bytes).map_err(text)?;
    if !output.status.success() || caisson_stats::read(&bytes).map_err(text)?.bytes != bytes.len() {
        return Err(format!("--raw: {}", output.status));
    }
    let output = asks(paths, &["--pid", &pid, "--json"])?;
    let json: Value = serde_json::from_slice(&output.stdout).map_err(text)?;
    if json["vms"][0]["blocks"][2]["stats"]["exits"].as_u64().is_none_or(|exits| exits == 0) {
        return Err(format!("--json: {json}"));
    }
    let output = asks(paths, &["--pid", &pid, "--vm", "a"])?;
    let table = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !table.contains("frames_mapped") || table.contains("kvm-b") {
        return Err(format!("the table is {table}"));
    }
    refused(paths, &["--pid", &pid, "--vm", "c"], 5, "there are 1 \"a\", 2 \"b\"")?;
    refused(paths, &["--pid", &pid, "--vm", "b", "--vcpu", "1"], 5, "has no vCPU 1")?;
    drop(running);
    refused(paths, &["--pid", &pid], 5, "no machine runs in process")?;
    Ok(checks + 6)
}

/// A machine whose manifest lets the console see no statistics has none.
fn without(paths: &Paths) -> Result<usize, String> {
    let folder = tempfile::tempdir().map_err(text)?;
    let board = std::fs::read_to_string(paths.manifest()).map_err(text)?;
    let (manifest, _) = board.split_once("[[share]]").ok_or("the manifest has no share")?;
    let (running, machine) = boot(paths, folder.path(), Some(manifest))?;
    let start = Instant::now();
    loop {
        match machine.read(1, "a") {
            Err(failure) if failure.text.contains("publishes no statistics") => break,
            // The console service isn't up yet.
            Err(_) if start.elapsed() < BOOT => std::thread::sleep(LOOK),
            other => return Err(format!("{other:?}")),
        }
    }
    refused(paths, &["--pid", &running.0.id().to_string()], 1, "publishes no statistics")?;
    Ok(1)
}
