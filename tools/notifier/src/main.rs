//! Measures notifications. A program of its own, so that xtask doesn't need the services to build itself.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use caisson_notifier_bench::layout::{Kind, SLOTS, VCPUS};
use caisson_notifier_bench::report::Report;
use caisson_notifier_bench::{costs, storm, unmap};
use clap::Parser;

/// Slots under the event whose flushes are counted.
const FLUSHED: u64 = 40;

/// As `cargo xtask bench notifier --help` tells.
#[derive(Parser)]
struct Choice {
    #[arg(long)]
    rounds: usize,
    #[arg(long)]
    json: bool,
    /// Where the book's table goes.
    #[arg(long)]
    book: Option<PathBuf>,
}

fn main() -> ExitCode {
    let choice = Choice::parse();
    match measure(choice.rounds.max(1)).and_then(|report| print(&choice, &report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: usize) -> Result<Report, String> {
    let mut costs = Vec::new();
    for kind in Kind::ALL {
        for slots in SLOTS {
            for vcpus in VCPUS {
                costs.push(costs::measure(kind, slots, vcpus, rounds)?);
            }
        }
    }
    let storms = [SLOTS[0], SLOTS[2]].map(|slots| storm::measure(slots, rounds.min(9), Duration::from_millis(100)));
    Ok(Report {
        costs,
        flushes: (FLUSHED, costs::flushes(FLUSHED)?),
        storms: storms.into_iter().collect::<Result<_, _>>()?,
        unmap: unmap::measure(unmap::PAGES, rounds.min(5))?,
    })
}

fn print(choice: &Choice, report: &Report) -> Result<(), String> {
    if choice.json {
        print!("{}", report.json());
    } else if let Some(folder) = &choice.book {
        let file = folder.join("notifications-tables.md");
        std::fs::write(&file, report.tables()).map_err(|error| format!("can't write {}: {error}", file.display()))?;
    } else {
        print!("{}", report.tables());
    }
    // Times depend on the machine and what else it does; these don't.
    let own = report.costs.iter().all(|cost| cost.locks[0] == 0 && cost.allocations[0] == 0);
    if own && report.flushes.1[0] == 1 {
        Ok(())
    } else {
        Err("Caisson took a lock, allocated memory, or flushed more than once for an event".into())
    }
}
