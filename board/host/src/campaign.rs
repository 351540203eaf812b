//! Many runs: seeds that have to be clean, and broken rules that have to be found.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use caisson_proto::mailbox;

use crate::config::{Config, Mutant};
use crate::sim::{Failure, run};

/// Runs seeds from `from` on, with progress on standard output. Stops at the first failure and tells it.
pub fn seeds(seeds: u64, from: u64) -> ExitCode {
    let begin = Instant::now();
    let hook = std::panic::take_hook();
    let (mut steps, mut events, mut exits, mut settled, mut commands, mut written) = (0, 0, 0, 0, 0, 0);
    let mut fewest = (u64::MAX, 0);
    for seed in from..from.saturating_add(seeds) {
        std::panic::set_hook(Box::new(move |info| {
            eprintln!("{info}\nreplay: cargo xtask sim --seeds 1 --from {seed}");
        }));
        match run(seed, &Config::of_seed(seed)) {
            Ok(report) => {
                steps += report.steps;
                events += report.events;
                fewest = fewest.min((report.events, seed));
                exits += report.exits;
                commands += report.commands;
                written += report.written;
                settled += u64::from(report.settled);
                if seeds == 1 {
                    println!("{report:#?}");
                }
            }
            Err(failure) => {
                eprintln!("{failure}");
                return ExitCode::from(1);
            }
        }
        let done = seed - from + 1;
        if done.is_multiple_of(100) {
            println!("{done} of {seeds} seeds, {steps} steps, {exits} VM exits, {:.0?}", begin.elapsed());
            let _ = std::io::stdout().flush();
        }
    }
    std::panic::set_hook(hook);
    println!(
        "{seeds} seeds from {from}: no rule broken; {steps} steps, {events} events (at least {}, in seed {}), {exits} VM exits, {commands} commands of the secure \
         processor, {written} lines written back, {settled} settled, {:.0?}",
        fewest.0,
        fewest.1,
        begin.elapsed()
    );
    ExitCode::SUCCESS
}

/// What a seed stands for where broken rules are looked for. Every other one has much taken from living VMs; where memory
/// is encrypted there is more of that, too.
pub fn hunt(seed: u64, mutant: Option<Mutant>) -> Config {
    let usual = Config {
        mutant,
        cpus: 2 + (seed / 4 % 3) as usize,
        lies: false,
        events: 0,
        vms: 1 + (seed % 5) as usize,
        ..Config::of_seed(seed)
    };
    // Little memory in small guests, so that frames and ASIDs are soon somebody else's.
    let tight = Config { encrypted: true, guest_pages: 48, frames: 512 * 4, vms: 4, vcpus: 4, ..usual };
    // A processor that keeps what it should forget, and a sev-firmware that has to find out.
    let stubborn = if seed % 8 == 6 { mailbox::DECOMMISSION } else { tight.stubborn };
    let deaths = if seed % 8 == 6 { 8 } else { tight.deaths };
    match seed % 4 {
        0 => usual,
        1 => Config { vms: 1, actions: 200, reclaims: 60, ..usual },
        2 => Config {
            stubborn,
            deaths,
            actions: 300,
            resets: 20,
            reclaims: 100,
            faults: 6,
            lazy: seed % 16 == 2,
            ..tight
        },
        _ => Config { actions: 500, resets: 20, reclaims: 200, faults: 0, deaths: 0, lazy: seed % 16 == 7, ..tight },
    }
}

/// The seed at which a broken rule is found, and as what.
pub fn find(mutant: Option<Mutant>, seeds: u64) -> Option<Failure> {
    (0..seeds).find_map(|seed| run(seed, &hunt(seed, mutant)).err())
}

/// Breaks each rule, and shows the seed at which it is found. One that isn't fails, and so does a seed in which none is broken.
pub fn mutants(seeds: u64) -> ExitCode {
    let mut survivors = Vec::new();
    println!("{:<18} {:>5}  broken: found as", "mutant", "seed");
    for mutant in Mutant::ALL {
        match find(Some(*mutant), seeds) {
            Some(Failure { seed, what, .. }) => {
                println!("{:<18} {seed:>5}  {} {what}", format!("{mutant:?}"), mutant.rule());
            }
            None => survivors.push(mutant),
        }
        let _ = std::io::stdout().flush();
    }
    println!("{} of {} broken rules found", Mutant::ALL.len() - survivors.len(), Mutant::ALL.len());
    if !survivors.is_empty() {
        eprintln!("not found within {seeds} seeds: {survivors:?}");
        return ExitCode::from(1);
    }
    match find(None, seeds) {
        None => {
            println!("and nothing is found in {seeds} seeds where no rule is broken");
            ExitCode::SUCCESS
        }
        Some(failure) => {
            eprintln!("no rule is broken on purpose, and one is found to be:\n{failure}");
            ExitCode::from(1)
        }
    }
}
