//! Counts flushes. A program of its own, so that xtask doesn't need the kernel and the simulated machine to build itself.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use caisson_flushes::run::{CPUS, FREE, Machine};
use caisson_flushes::trace::Kind;
use caisson_flushes::{plot, report, run};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

/// Free memory in the plot.
const PLOTTED: u64 = 10;

/// As `cargo xtask bench flushes --help` tells.
#[derive(Parser)]
struct Choice {
    #[arg(long)]
    trace: Vec<String>,
    #[arg(long)]
    cpus: Vec<u16>,
    #[arg(long)]
    free: Vec<u64>,
    #[arg(long)]
    group: usize,
    #[arg(long)]
    json: bool,
    /// Where the book's table and plot go.
    #[arg(long)]
    book: Option<PathBuf>,
}

impl Choice {
    fn machines(&self) -> Vec<Machine> {
        let all_or = |chosen: &[u64], all: &[u64]| if chosen.is_empty() { all.to_vec() } else { chosen.to_vec() };
        let free = all_or(&self.free, &FREE);
        let cpus = if self.cpus.is_empty() { CPUS.to_vec() } else { self.cpus.clone() };
        let kinds = Kind::ALL
            .into_iter()
            .filter(|kind| self.trace.is_empty() || self.trace.iter().any(|name| name == kind.name()));
        let of_kind = |kind| {
            let free = &free;
            cpus.iter().flat_map(move |cpus| free.iter().map(move |free| Machine { kind, cpus: *cpus, free: *free }))
        };
        kinds.flat_map(of_kind).collect()
    }
}

fn main() -> ExitCode {
    match print(&Choice::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

/// What went wrong: a trace that can't be played, or a file that can't be written.
fn print(choice: &Choice) -> Result<(), String> {
    let machines = choice.machines();
    let bar = ProgressBar::new(machines.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} of {len} machines, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let rows = run::all(&machines, choice.group, || bar.inc(1));
    bar.finish_and_clear();
    let rows = rows?;
    if choice.json {
        print!("{}", report::json(&rows));
    } else if let Some(folder) = &choice.book {
        write(folder, "flushes-tables.md", report::tables(&rows))?;
        write(folder, "flushes.svg", plot::svg(&rows, PLOTTED))?;
    } else {
        print!("{}", report::tables(&rows));
    }
    Ok(())
}

fn write(folder: &Path, name: &str, text: String) -> Result<(), String> {
    std::fs::write(folder.join(name), text).map_err(|error| format!("can't write {name}: {error}"))
}
