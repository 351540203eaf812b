//! Many runs: seeds that have to be clean, and broken rules that have to be found.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use crate::config::{Config, Mutant};
use crate::hunt::hunt;
use crate::sim::Failure;
use crate::sweep::{sweep, tell_panics};

/// Seeds between two lines that tell how far it is.
const PROGRESS: u64 = 500;

/// Runs seeds from `from` on, on so many threads, with progress on standard output. Stops at the first failure and tells it.
pub fn seeds(seeds: u64, from: u64, jobs: usize) -> ExitCode {
    tell_panics();
    let begin = Instant::now();
    let (mut steps, mut events, mut exits, mut settled, mut commands, mut written) = (0, 0, 0, 0, 0, 0);
    let (mut done, mut fewest) = (0, (u64::MAX, 0));
    let failure = sweep(from..from.saturating_add(seeds), jobs, Config::of_seed, |report| {
        done += 1;
        steps += report.steps;
        events += report.events;
        fewest = fewest.min((report.events, report.seed));
        exits += report.exits;
        commands += report.commands;
        written += report.written;
        settled += u64::from(report.settled);
        if seeds == 1 {
            println!("{report:#?}");
        }
        if done % PROGRESS == 0 {
            println!("{done} of {seeds} seeds, {steps} steps, {exits} VM exits, {:.0?}", begin.elapsed());
            let _ = std::io::stdout().flush();
        }
    });
    if let Some(failure) = failure {
        eprintln!("{failure}");
        return ExitCode::from(1);
    }
    println!(
        "{seeds} seeds from {from}: no rule broken; {steps} steps, {events} events (at least {}, in seed {}), {exits} VM exits, {commands} commands of the secure \
         processor, {written} lines written back, {settled} settled, {:.0?}",
        fewest.0,
        fewest.1,
        begin.elapsed()
    );
    ExitCode::SUCCESS
}

/// The first seed from `from` on at which a broken rule is found, and as what.
pub fn find(mutant: Option<Mutant>, seeds: u64, from: u64, jobs: usize) -> Option<Failure> {
    sweep(from..from.saturating_add(seeds), jobs, |seed| hunt(seed, mutant), drop)
}

/// Breaks a rule, or none, and tells the first seed at which that is found with what happened before. A rule that is broken and
/// isn't found fails, and so does one that is found and wasn't broken.
pub fn mutant(mutant: Option<Mutant>, seeds: u64, from: u64, jobs: usize) -> ExitCode {
    tell_panics();
    let found = find(mutant, seeds, from, jobs);
    match &found {
        Some(failure) => eprintln!("{failure}"),
        None => println!("nothing is found in {seeds} seeds from {from}"),
    }
    if found.is_some() == mutant.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Breaks each rule, and shows the seed at which it is found. One that isn't fails, and so does a seed in which none is broken.
pub fn mutants(seeds: u64, jobs: usize) -> ExitCode {
    tell_panics();
    let begin = Instant::now();
    let mut survivors = Vec::new();
    println!("{:<18} {:>5}  broken: found as", "mutant", "seed");
    for mutant in Mutant::ALL {
        match find(Some(*mutant), seeds, 0, jobs) {
            Some(Failure { seed, what, .. }) => {
                println!("{:<18} {seed:>5}  {} {what}", mutant.name(), mutant.rule());
            }
            None => {
                println!("{:<18}     -  {} NOT FOUND", mutant.name(), mutant.rule());
                survivors.push(mutant);
            }
        }
        let _ = std::io::stdout().flush();
    }
    let (all, found) = (Mutant::ALL.len(), Mutant::ALL.len() - survivors.len());
    println!("{found} of {all} broken rules found, {:.0?}", begin.elapsed());
    println!("replay one: cargo xtask sim --mutant NAME --seeds 1 --from SEED");
    if !survivors.is_empty() {
        eprintln!("not found within {seeds} seeds: {survivors:?}");
        return ExitCode::from(1);
    }
    let mut done = 0;
    let none = sweep(
        0..seeds,
        jobs,
        |seed| hunt(seed, None),
        |_| {
            done += 1;
            if done % PROGRESS == 0 {
                println!("{done} of {seeds} seeds in which no rule is broken, {:.0?}", begin.elapsed());
                let _ = std::io::stdout().flush();
            }
        },
    );
    match none {
        None => {
            println!("and nothing is found in {seeds} seeds where no rule is broken, {:.0?}", begin.elapsed());
            ExitCode::SUCCESS
        }
        Some(failure) => {
            eprintln!("no rule is broken on purpose, and one is found to be:\n{failure}");
            ExitCode::from(1)
        }
    }
}
