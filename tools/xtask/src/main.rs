//! `cargo xtask`: sets up, builds, runs, tests and measures Caisson.
#![forbid(unsafe_code)]

mod bench;
mod book;
mod bzimage;
mod channels;
mod check;
mod cli;
mod debian;
mod devices;
mod exits;
mod failure;
mod flushes;
mod fuzz;
mod gdb;
mod guests;
mod image;
mod initramfs;
mod kut;
mod logs;
mod machine;
mod modules;
mod notifications;
mod paths;
mod program;
mod progress;
mod qemu;
mod run;
mod screen;
mod script;
mod setup;
mod signals;
mod sim;
mod stats;
mod tcb;
mod terminal;
mod verdict;

use std::process::ExitCode;

use clap::Parser;
use cli::{Bench, Cli, Command};
use failure::{Failure, Status};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // What clap says is several lines; the last line has to be the status.
            let _ = error.print();
            let text = error.to_string();
            let first = text.lines().next().unwrap_or("bad argument");
            return end(&Failure::new(Status::BadSetup, first.trim_start_matches("error: ")));
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(failure) => end(&failure),
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    let paths = paths::Paths::find()?;
    match command {
        Command::Setup => setup::everything(&paths).map(|_| ExitCode::SUCCESS),
        Command::Run(args) => run::run(&paths, &args).map(|outcome| end(&outcome)),
        Command::Bench(Bench::Boot(args)) => bench::boot(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Bench(Bench::Exits(args)) => exits::exits(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Bench(Bench::Devices(args)) => devices::devices(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Bench(Bench::Notifier(args)) => notifications::notifier(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Bench(Bench::Flushes(args)) => flushes::flushes(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => match check::test(&paths, &args) {
            // The count is the last line.
            Err(failure) if failure.text.is_empty() => Ok(ExitCode::from(failure.status as u8)),
            done => done.map(|()| ExitCode::SUCCESS),
        },
        Command::Kut(args) => kut::kut(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(args) => fuzz::fuzz(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Stats(args) => stats::stats(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Memory(args) => stats::memory::memory(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Soak(args) => check::soak(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Sim(args) => sim::sim(&paths, &args).map(|()| ExitCode::SUCCESS),
        Command::Book => book::build(&paths).map(|place| {
            println!("{}", place.join("index.html").display());
            ExitCode::SUCCESS
        }),
        Command::Tcb { json, files } => tcb::tcb(&paths, json, files).map(|()| ExitCode::SUCCESS),
        Command::Image(args) => image::leave(&paths, &args).map(|()| ExitCode::SUCCESS),
    }
}

/// Says how it ended, as the last line on standard error.
fn tell(outcome: &Failure) {
    use std::io::Write;
    // Where the terminal is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "caisson: exit status {}: {}", outcome.status as u8, outcome.text);
}

/// Says how it ended and makes it the exit status.
fn end(outcome: &Failure) -> ExitCode {
    tell(outcome);
    ExitCode::from(outcome.status as u8)
}
