//! Counts flushes: `caisson-flushes tables|json [CPUS…]`, or `caisson-flushes book DIR`, which writes table and plot for the book. A
//! program of its own, so that xtask doesn't need the kernel and the services to build itself.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use caisson_flushes::{plot, report, run};

/// Free memory in the plot.
const PLOTTED: u64 = 10;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let Some((what, rest)) = arguments.split_first() else {
        eprintln!("usage: caisson-flushes tables|json [CPUS...] | book DIR");
        return ExitCode::from(5);
    };
    match print(what, rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn print(what: &str, rest: &[String]) -> Result<(), String> {
    let chosen: Vec<u16> = rest.iter().filter_map(|cpus| cpus.parse().ok()).collect();
    let rows = run::all(if chosen.is_empty() { &run::CPUS } else { &chosen })?;
    match (what, rest) {
        ("json", _) => print!("{}", report::json(&rows)),
        ("book", [folder]) => {
            let write = |name: &str, text: String| {
                std::fs::write(Path::new(folder).join(name), text).map_err(|error| format!("{name}: {error}"))
            };
            write("flushes-tables.md", report::tables(&rows))?;
            write("flushes.svg", plot::svg(&rows, PLOTTED))?;
        }
        _ => print!("{}", report::tables(&rows)),
    }
    Ok(())
}
