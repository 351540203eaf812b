//! `cargo xtask kut`: kvm-unit-tests as guests, and bare in the same QEMU with the same machine.

mod list;
pub mod outcome;

use std::path::Path;

use caisson_manifest::Size;
use caisson_manifest::system::System;
use serde_json::json;

use self::list::Entry;
use self::outcome::{End, Outcome};
use crate::cli::{KutArgs, LogLevel, MachineArgs};
use crate::failure::{Context, Failure, Status};
use crate::image::{self, Programs};
use crate::paths::Paths;
use crate::progress::Step;
use crate::{guests, machine};

/// QEMU's devices that the tests use.
const DEVICES: &str = "-device isa-debug-exit,iobase=0xf4,iosize=0x04 -device pc-testdev";
/// The least that a test has on Caisson, in seconds: those with 100,000 NMIs take three minutes.
const LEAST_SECONDS: u64 = 300;

/// An entry and what came of it: bare, and on Caisson.
struct Row {
    entry: Entry,
    ran: Option<(Outcome, Outcome)>,
}

impl Row {
    /// It passes bare and doesn't on Caisson. That a feature isn't shown to guests is no fault.
    fn is_worse(&self) -> bool {
        let passes = |end: &End| matches!(end, End::Passed | End::Skipped);
        self.ran.as_ref().is_some_and(|(bare, ours)| bare.end == End::Passed && !passes(&ours.end))
    }
}

/// Runs them and prints the table.
pub fn kut(paths: &Paths, args: &KutArgs) -> Result<(), Failure> {
    let mut entries = list::read(&args.folder)?;
    if let Some(unknown) = args.only.iter().find(|name| entries.iter().all(|entry| entry.name != **name)) {
        return Err(Failure::setup(format!("the list has no entry \"{unknown}\"")));
    }
    entries.retain(|entry| args.only.is_empty() || args.only.contains(&entry.name));
    let system = image::manifest(paths, None)?;
    let programs = image::programs(paths, &system, LogLevel::Warn)?;
    let folder = tempfile::tempdir().context("no folder for temporary files")?;
    let mut rows = Vec::new();
    let count = entries.len();
    for (at, entry) in entries.into_iter().enumerate() {
        let step = Step::begin(format!("{} ({} of {count})", entry.name, at + 1));
        let ran = match entry.skipped {
            Some(_) => None,
            None => Some((bare(folder.path(), &entry)?, on_caisson(paths, &system, &programs, folder.path(), &entry)?)),
        };
        step.done();
        if let Some((_, ours)) = ran.as_ref().filter(|_| args.show) {
            eprintln!("{}", ours.output.trim_end());
        }
        rows.push(Row { entry, ran });
    }
    if args.json {
        println!("{:#}", rows.iter().map(to_json).collect::<serde_json::Value>());
    } else {
        table(&rows);
    }
    let worse: Vec<&str> = rows.iter().filter(|row| row.is_worse()).map(|row| row.entry.name.as_str()).collect();
    if worse.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Status::Failed, format!("pass bare and not on Caisson: {}", worse.join(", "))))
}

fn bare(folder: &Path, entry: &Entry) -> Result<Outcome, Failure> {
    let mut arguments = machine::hardware(entry.cpus, entry.memory, false);
    arguments.extend(DEVICES.split(' ').map(String::from));
    arguments.extend(["-kernel".into(), entry.file.display().to_string()]);
    arguments.extend(["-append".into(), entry.arguments()]);
    outcome::run(folder, &arguments, None, entry.seconds)
}

fn on_caisson(
    paths: &Paths, system: &System, programs: &Programs, folder: &Path, entry: &Entry,
) -> Result<Outcome, Failure> {
    let file = folder.join("test.toml");
    std::fs::write(&file, "test-devices = true\non-reset = \"stop\"\n").about("write", &file)?;
    let args = MachineArgs {
        cpus: Some(entry.cpus.into()),
        vcpus: entry.cpus.into(),
        memory: Size(entry.memory),
        machine_memory: None,
        kernel: Some(entry.file.clone()),
        initrd: None,
        disk: None,
        cmdline: entry.arguments(),
        vms: vec![file],
        log: LogLevel::Warn,
        manifest: None,
        icount: false,
    };
    let machine = guests::resolve(paths, system, &args)?;
    let built = image::assemble(system, &machine, programs)?;
    let bundle = folder.join("bundle");
    std::fs::write(&bundle, &built.bundle).about("write", &bundle)?;
    let seconds = LEAST_SECONDS.max(2 * entry.seconds);
    outcome::run(folder, &machine::arguments(&machine, &built.kernel, &bundle), Some(&built), seconds)
}

fn table(rows: &[Row]) {
    println!("{:<32} {:<18} {:<18}", "test", "bare TCG", "Caisson");
    for Row { entry, ran } in rows {
        match ran {
            None => println!("{:<32} {:<18} {}", entry.name, "-", entry.skipped.unwrap_or("-")),
            Some((bare, ours)) => {
                let (theirs, words) = (bare.words(), ours.words());
                println!("{:<32} {theirs:<18} {words:<18} {:.1} s, {:.1} s", entry.name, bare.seconds, ours.seconds);
                let known = bare.failures();
                for failure in ours.failures().into_iter().filter(|failure| !known.contains(failure)) {
                    println!("    {failure}");
                }
                match &ours.end {
                    End::Died(why) => println!("    {why}"),
                    End::Aborted | End::TimedOut | End::Failed(_) if ours.failures().is_empty() => {
                        let mut last: Vec<&str> =
                            ours.output.lines().rev().filter(|line| !line.is_empty()).take(3).collect();
                        last.reverse();
                        last.iter().for_each(|line| println!("    … {line}"));
                    }
                    _ => {}
                }
            }
        }
    }
    let passed = |side: fn(&(Outcome, Outcome)) -> &Outcome| {
        rows.iter().filter(|row| row.ran.as_ref().is_some_and(|ran| side(ran).end == End::Passed)).count()
    };
    let ran = rows.iter().filter(|row| row.ran.is_some()).count();
    println!("{ran} of {} ran; {} pass bare, {} on Caisson", rows.len(), passed(|ran| &ran.0), passed(|ran| &ran.1));
}

fn to_json(row: &Row) -> serde_json::Value {
    let Row { entry, ran } = row;
    let side = |outcome: &Outcome| {
        let (passed, failed) = outcome.counts();
        let why = match &outcome.end {
            End::Died(why) => Some(why),
            _ => None,
        };
        json!({
            "end": outcome.end.to_string(), "why": why, "seconds": outcome.seconds, "passed": passed, "failed": failed,
            "failures": outcome.failures(),
        })
    };
    json!({
        "test": entry.name, "cpus": entry.cpus, "memory": entry.memory, "arguments": entry.arguments(),
        "skipped": entry.skipped,
        "bare": ran.as_ref().map(|(bare, _)| side(bare)), "caisson": ran.as_ref().map(|(_, ours)| side(ours)),
    })
}
