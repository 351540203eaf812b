//! Runs fuzz targets without an engine: `cargo xtask fuzz` and the tests use it.
//!
//! `list` names the targets. `replay TARGET FILE…` runs inputs. `search TARGET SEED RUNS SAVE CORPUS` runs the inputs of
//! the folder CORPUS, then those of a seeded sequence; one that breaks the target, or takes longer than a minute, is
//! saved in the folder SAVE.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use caisson_fuzz::search::{Sequence, inputs};
use caisson_fuzz::{TARGETS, Target, find};

/// An input that takes longer than this is broken.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => {
            TARGETS.iter().for_each(|target| println!("{:<14}{}", target.name, target.about));
            Some(())
        }
        ["replay", name, files @ ..] => find(name).map(|target| replay(target, files)),
        ["search", name, seed, runs, save, corpus] => match (find(name), seed.parse(), runs.parse()) {
            (Some(target), Ok(seed), Ok(runs)) => {
                search(target, seed, runs, Path::new(save), Path::new(corpus));
                Some(())
            }
            _ => None,
        },
        _ => None,
    };
    match done {
        Some(()) => ExitCode::SUCCESS,
        None => {
            eprintln!("usage: list | replay TARGET FILE… | search TARGET SEED RUNS SAVE CORPUS");
            ExitCode::from(5)
        }
    }
}

fn replay(target: &Target, files: &[&str]) {
    for file in files {
        match std::fs::read(file) {
            Ok(bytes) => (target.run)(&bytes),
            Err(error) => {
                eprintln!("can't read {file}: {error}");
                std::process::exit(5);
            }
        }
    }
    println!("{}: {} inputs, none breaks it", target.name, files.len());
}

/// What is being run, for whoever must save it.
type Current = Arc<Mutex<(Vec<u8>, Instant)>>;

fn save(current: &Current, name: &str, folder: &Path) -> Option<PathBuf> {
    let (input, _) = &*current.lock().ok()?;
    let sum = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let path = folder.join(format!("{name}-{sum:016x}"));
    std::fs::create_dir_all(folder).ok()?;
    std::fs::write(&path, input).ok()?;
    Some(path)
}

fn search(target: &'static Target, seed: u64, runs: u64, folder: &Path, corpus: &Path) {
    let current: Current = Arc::new(Mutex::new((Vec::new(), Instant::now())));
    let broken = {
        let (current, folder) = (Arc::clone(&current), folder.to_owned());
        move || match save(&current, target.name, &folder) {
            Some(path) => println!("broken {}", path.display()),
            None => println!("broken, and the input couldn't be saved"),
        }
    };
    let told = std::panic::take_hook();
    let by_panic = broken.clone();
    std::panic::set_hook(Box::new(move |info| {
        told(info);
        by_panic();
        std::process::exit(1);
    }));
    let watched = Arc::clone(&current);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if watched.lock().is_ok_and(|current| current.1.elapsed() > LIMIT) {
                eprintln!("an input takes longer than {} s", LIMIT.as_secs());
                broken();
                std::process::exit(1);
            }
        }
    });
    let known: Vec<Vec<u8>> = inputs(corpus).into_iter().map(|(_, bytes)| bytes).collect();
    let mut sequence = Sequence::new(seed);
    let runs = if runs == 0 { target.runs.into() } else { runs };
    for number in 0..known.len() as u64 + runs {
        let input = known.get(number as usize).cloned().unwrap_or_else(|| sequence.input(&known));
        if let Ok(mut current) = current.lock() {
            *current = (input.clone(), Instant::now());
        }
        (target.run)(&input);
    }
    println!("{}: {} known inputs and {runs} of seed {seed}, none breaks it", target.name, known.len());
}
