//! `cargo xtask bench exits`: what an exit, a call and a message cost, in instructions and in ticks of the wall's clock.
//!
//! QEMU counts instructions instead of time, one tick of the TSC each, so that a guest and a service which read the
//! counter before and after count exactly, and every run must say the same.

mod figures;
mod parts;
mod trace;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use caisson_manifest::Size;
use serde_json::json;

use crate::channels::Demux;
use crate::cli::{ExitsArgs, LogLevel, MachineArgs};
use crate::failure::{Context, Failure, Status};
use crate::guests::{self, Machine};
use crate::image::{self, Built};
use crate::logs::Logs;
use crate::machine;
use crate::paths::Paths;
use crate::progress::Step;
use crate::qemu::Qemu;
use figures::{FIGURES, Figure};

/// A run that takes longer than this has failed.
const LONGEST: Duration = Duration::from_secs(180);
/// The guest's package.
const GUEST: &str = "caisson-guest-exits";

/// What was measured under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Measured {
    name: String,
    least: u64,
    median: u64,
}

/// The machine, and what it is started with.
pub struct Bench {
    folder: tempfile::TempDir,
    machine: Machine,
    built: Built,
}

impl Bench {
    /// Builds everything. The guest gets this command line.
    pub fn build(paths: &Paths, cmdline: &str) -> Result<Self, Failure> {
        let args = MachineArgs {
            cpus: Some(1),
            vcpus: 1,
            memory: Size(64 << 20),
            machine_memory: None,
            kernel: Some(image::guest(paths, GUEST)?),
            initrd: None,
            disk: None,
            cmdline: cmdline.into(),
            vms: Vec::new(),
            log: LogLevel::Info,
            manifest: None,
            icount: true,
        };
        let system = image::manifest(paths, Some(&paths.root.join("board/qemu/bench.toml")))?;
        let machine = guests::resolve(paths, &system, &args)?;
        let built = image::build(paths, &system, &machine, args.log)?;
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let bundle = folder.path().join("bundle");
        std::fs::write(&bundle, &built.bundle).about("write", &bundle)?;
        Ok(Self { folder, machine, built })
    }

    /// Starts it; with `icount` every run is the same.
    fn start(&self, icount: bool, more: &[String]) -> Result<Qemu, Failure> {
        let machine = Machine { icount, ..self.machine.clone() };
        let mut arguments = machine::arguments(&machine, &self.built.kernel, &self.bundle());
        arguments.extend_from_slice(more);
        Qemu::start(self.folder.path(), &arguments, true)
    }

    fn bundle(&self) -> std::path::PathBuf {
        Path::join(self.folder.path(), "bundle")
    }

    /// One run from start to the last figure.
    fn run(&self, icount: bool) -> Result<Vec<Measured>, Failure> {
        let mut qemu = self.start(icount, &[])?;
        let said = listen(&mut qemu, &self.built);
        let errors = qemu.end();
        said.map_err(|why| Failure::new(Status::Failed, format!("{why} {}", errors.trim())))
    }
}

/// Takes what has arrived; `false` at the stream's end.
fn take(stream: &mut UnixStream, mut feed: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        Ok(count) => {
            feed(&buffer[..count]);
            true
        }
        // It timed out.
        Err(_) => true,
    }
}

/// Hears the guest and the services until both have said everything.
fn listen(qemu: &mut Qemu, built: &Built) -> Result<Vec<Measured>, String> {
    let mut logs = Logs::new(built, LogLevel::Info).map_err(|failure| failure.text)?;
    let Some((mut log, mut kernel_log)) = qemu.log.take().zip(qemu.kernel_log.take()) else {
        return Err("no log device".into());
    };
    std::thread::spawn(move || std::io::copy(&mut kernel_log, &mut std::io::sink()));
    for stream in [&qemu.console, &log] {
        stream.set_read_timeout(Some(Duration::from_millis(5))).map_err(|error| error.to_string())?;
    }
    let (mut demux, mut text) = (Demux::default(), String::new());
    let (mut measured, mut ends) = (Vec::<Measured>::new(), 0);
    let mut lines: Vec<String> = Vec::new();
    while ends < 2 {
        if qemu.started.elapsed() > LONGEST {
            return Err(format!("not every figure came in {} s", LONGEST.as_secs()));
        }
        let heard = take(&mut qemu.console, |bytes| {
            demux.feed(bytes, |channel, bytes| {
                if channel == 1 {
                    text.push_str(&String::from_utf8_lossy(bytes));
                }
            });
        });
        let logged = take(&mut log, |bytes| lines.extend(logs.feed(bytes).into_iter().map(|line| line.what)));
        if !heard || !logged {
            return Err(format!("QEMU ended before every figure came; the guest said: {text}"));
        }
        while let Some(end) = text.find('\n') {
            lines.push(text.drain(..=end).collect());
        }
        for line in lines.drain(..) {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["exits" | "bench", "end"] => ends += 1,
                ["exits" | "bench", name, least, median] => {
                    let number = |word: &str| word.parse().map_err(|_| format!("no figure: {line}"));
                    measured.push(Measured { name: name.into(), least: number(least)?, median: number(median)? });
                }
                ["guest", "panicked:", ..] => return Err(line),
                _ => {}
            }
        }
    }
    // The two streams come in any order.
    measured.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(measured)
}

/// Runs that must be alike.
fn counted(bench: &Bench, runs: u32) -> Result<Vec<Measured>, Failure> {
    let mut first: Option<Vec<Measured>> = None;
    for round in 1..=runs {
        let step = Step::begin(format!("counting, round {round} of {runs}"));
        let measured = bench.run(true)?;
        step.done();
        let Some(first) = &first else {
            first = Some(measured);
            continue;
        };
        if let Some(why) = difference(first, &measured) {
            return Err(Failure::new(Status::Failed, format!("round {round} differs from the first: {why}")));
        }
    }
    let measured = first.unwrap_or_default();
    match FIGURES.iter().find(|figure| find(&measured, figure.name).is_none()) {
        None => Ok(measured),
        Some(figure) => Err(Failure::new(Status::Failed, format!("\"{}\" wasn't measured", figure.name))),
    }
}

/// What differs, if anything does.
fn difference(first: &[Measured], other: &[Measured]) -> Option<String> {
    if first.len() != other.len() {
        return Some(format!("{} figures and not {}", other.len(), first.len()));
    }
    first.iter().zip(other).find(|(first, other)| first != other).map(|(first, other)| {
        let Measured { name, least, median } = other;
        format!("{name} least {least}, median {median}; it was {} {}, {}", first.name, first.least, first.median)
    })
}

fn find<'a>(measured: &'a [Measured], name: &str) -> Option<&'a Measured> {
    measured.iter().find(|one| one.name == name)
}

/// Measures everything and prints it beside KVM's figures and the aims.
pub fn exits(paths: &Paths, args: &ExitsArgs) -> Result<(), Failure> {
    if let Some(kind) = &args.parts {
        return parts::parts(paths, kind, args.json);
    }
    let bench = Bench::build(paths, "")?;
    let measured = counted(&bench, args.runs)?;
    let step = Step::begin("by the wall's clock");
    let wall = bench.run(false)?;
    step.done();
    let row = |figure: &Figure| {
        let counted = find(&measured, figure.name).map_or(0, |one| one.median);
        (counted, find(&wall, figure.name).map(|one| one.median))
    };
    if args.json {
        let rows: Vec<_> = FIGURES
            .iter()
            .map(|figure| {
                let (instructions, ticks) = row(figure);
                json!({ "name": figure.name, "about": figure.about, "instructions": instructions, "wall-ticks": ticks,
                    "kvm": figure.kvm, "aim": figure.aim })
            })
            .collect();
        println!("{:#}", json!({ "bench": "exits", "runs": args.runs, "figures": rows }));
        return Ok(());
    }
    println!(
        "{:<44} {:>12} {:>10} {:>6} {:>6}",
        "median, the same in every run", "instructions", "wall ticks", "KVM", "aim"
    );
    for figure in FIGURES {
        let (instructions, ticks) = row(figure);
        let number = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
        let missed = if figure.aim.is_some_and(|aim| instructions > aim) { "  missed" } else { "" };
        let (ticks, kvm, aim) = (number(ticks), number(figure.kvm), number(figure.aim));
        println!("{:<44} {instructions:>12} {ticks:>10} {kvm:>6} {aim:>6}{missed}", figure.about);
    }
    Ok(())
}

/// The short form, for `cargo xtask test`: two runs that must be alike. How many figures there are.
pub fn check(paths: &Paths) -> Result<usize, Failure> {
    counted(&Bench::build(paths, "")?, 2).map(|measured| measured.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_difference_is_told() {
        let one = |name: &str, least, median| Measured { name: name.into(), least, median };
        let first = [one("a", 1, 2), one("b", 3, 4)];
        assert_eq!(difference(&first, &first), None);
        assert!(difference(&first, &first[..1]).unwrap().contains("1 figures and not 2"));
        let other = [one("a", 1, 2), one("b", 3, 5)];
        assert_eq!(difference(&first, &other).unwrap(), "b least 3, median 5; it was b 3, 4");
    }
}
