//! `cargo xtask test`: everything that must hold, step by step, each timed and reported in a line.

mod guest;
mod hostile;
mod impostor;
mod judges;
mod kill;
mod machines;
mod network;
mod pressure;
mod private;
mod recycle;
mod statistics;
mod steps;
mod terminal;
mod tiny;
mod virtio;
mod witness;

use std::time::Instant;

pub use pressure::soak;

use crate::cli::TestArgs;
use crate::failure::{Failure, Status};
use crate::paths::Paths;

/// How a step went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Checks that passed.
    pub passed: usize,
    /// What failed, each with its reason.
    pub failed: Vec<String>,
    /// Why it wasn't done.
    pub skipped: Option<String>,
}

impl Outcome {
    fn passed(count: usize) -> Self {
        Self { passed: count, ..Self::default() }
    }

    fn failed(why: impl Into<String>) -> Self {
        Self { failed: vec![why.into()], ..Self::default() }
    }

    fn skipped(why: impl Into<String>) -> Self {
        Self { skipped: Some(why.into()), ..Self::default() }
    }
}

/// A step: its name, what it checks, and how.
pub struct Step {
    /// For `--only`.
    pub name: &'static str,
    /// In a few words.
    pub about: &'static str,
    run: fn(&Paths) -> Outcome,
}

/// What is quick comes first.
const STEPS: &[Step] = &[
    Step { name: "fmt", about: "rustfmt has nothing to change", run: steps::fmt },
    Step { name: "clippy", about: "clippy has nothing to say, on the host and for the machine", run: steps::clippy },
    Step { name: "doc", about: "rustdoc without warnings", run: steps::doc },
    Step { name: "book", about: "the book builds", run: steps::book },
    Step { name: "tcb", about: "ring 0 keeps to its bounds", run: steps::tcb },
    Step {
        name: "host",
        about: "unit and property tests, and some hundred seeds of the simulated machine",
        run: steps::host,
    },
    Step { name: "fuzz", about: "known inputs and some thousand others for each fuzz target", run: steps::fuzz },
    Step {
        name: "owner",
        about: "the sev crate, with OpenSSL, owns guests of the secure processor",
        run: judges::owner,
    },
    Step { name: "digests", about: "sev-snp-measure still gives the committed launch digests", run: judges::digests },
    Step { name: "loom", about: "rings and hand-overs in every order", run: steps::loom },
    Step { name: "miri", about: "layouts and codecs under Miri", run: steps::miri },
    Step { name: "terminal", about: "a guest's shell at a terminal: keys, Ctrl-C, Ctrl-A N and X", run: terminal::run },
    Step {
        name: "hostile-service",
        about: "a service that tries everything that it mustn't: each attempt is refused or bounded, and it is named",
        run: hostile::run,
    },
    Step {
        name: "hostile-guest",
        about: "a guest that tries everything: it gets what the bare machine gives, and nobody else notices",
        run: guest::run,
    },
    Step {
        name: "kill-services",
        about: "each service in turn is killed under two busy guests, which go on; a vmm ends its own guest only",
        run: kill::run,
    },
    Step {
        name: "pressure",
        about: "guests with more memory than there is, whose sizes change while services are killed: no page is lost, no frame leaks",
        run: pressure::run,
    },
    Step {
        name: "private-memory",
        about: "guests of each kind make memory private and shared while services are killed: nothing is lost, the host sees what is shared",
        run: private::run,
    },
    Step {
        name: "recycle-asids",
        about: "an encrypted guest lives until ASIDs run out, again and again: WBINVD everywhere, DF_FLUSH, ACTIVATE, and no sooner",
        run: recycle::run,
    },
    Step {
        name: "hostile-firmware",
        about: "a hostile service in sev-firmware's place names what isn't its: nothing of it reaches the processor",
        run: impostor::run,
    },
    Step {
        name: "virtio",
        about: "Linux's virtio drivers: a disk is what its file is, what is written is read again, free memory is given back",
        run: virtio::run,
    },
    Step {
        name: "network",
        about: "two guests reach each other, a third in another network doesn't; the switch is killed under a connection, which goes on",
        run: network::run,
    },
    Step {
        name: "statistics",
        about: "two guests' statistics, read while they work: accepted by the rules of Linux's own test, and they add up",
        run: statistics::run,
    },
    Step { name: "exits", about: "exits, calls and messages cost the same in every run", run: exits },
    Step { name: "qemu", about: "machines in QEMU: boots, guests, crashes, every exit status", run: machines::run },
];

/// The figures of `bench exits`, one check each.
fn exits(paths: &Paths) -> Outcome {
    match crate::exits::check(paths) {
        Ok(figures) => Outcome::passed(figures),
        Err(failure) => Outcome::failed(failure.text),
    }
}

/// Runs the steps asked for; the last line on standard output counts what passed and failed.
pub fn test(paths: &Paths, args: &TestArgs) -> Result<(), Failure> {
    if args.list {
        STEPS.iter().for_each(|step| println!("{:<15} {}", step.name, step.about));
        machines::list().for_each(|(name, about)| println!("  {name:<22} {about}"));
        return Ok(());
    }
    for name in &args.only {
        if !STEPS.iter().any(|step| step.name == name) && !machines::list().any(|(test, _)| test == name) {
            let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
            let meant = caisson_manifest::parse::suggestion(name, &known);
            return Err(Failure::setup(format!("no step or machine test is named \"{name}\"{meant}")));
        }
    }
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let (mut passed, mut failed) = (0, 0);
    let mut report = |name: &str, start: Instant, outcome: Outcome| {
        let took = start.elapsed().as_secs_f32();
        passed += outcome.passed;
        failed += outcome.failed.len();
        match &outcome.skipped {
            Some(why) => println!("skipped {name:<24} {why}"),
            None if outcome.failed.is_empty() => {
                println!("ok      {name:<24} {:>4} passed, {took:.1} s", outcome.passed)
            }
            None => println!("FAILED  {name:<24} {took:.1} s: {}", outcome.failed.join("; ")),
        }
    };
    for step in STEPS.iter().filter(|step| wanted(step.name)) {
        let start = Instant::now();
        if step.name == "qemu" {
            // Each machine is a line of its own.
            for (name, _) in machines::list() {
                let start = Instant::now();
                report(name, start, machines::one(paths, name));
            }
            continue;
        }
        report(step.name, start, (step.run)(paths));
    }
    for (name, _) in machines::list().filter(|(name, _)| args.only.iter().any(|only| only == name)) {
        let start = Instant::now();
        report(name, start, machines::one(paths, name));
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { Ok(()) } else { Err(Failure::new(Status::Failed, String::new())) }
}
