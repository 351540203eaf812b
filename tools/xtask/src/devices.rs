//! `cargo xtask bench devices`: what a request of a disk and a frame of a network cost, in instructions, and how fast they are
//! beside the same guests without Caisson.

mod scripts;
mod sides;

use std::fmt::Write;

use serde_json::json;

use crate::cli::DevicesArgs;
use crate::failure::{Context, Failure, Status};
use crate::paths::Paths;
use crate::progress::Step;
use scripts::{READS, ROUNDS, SENT, TRIPS, Work};
use sides::{Found, Lab};

/// What is counted: its name in the scripts, in a few words, and how many of these a request is. A ping is a frame there and one
/// back.
const COUNTED: [(&str, &str, u64); 4] = [
    ("read", "disk: reading 4 KiB", 1),
    ("write", "disk: writing 4 KiB", 1),
    ("small", "network: a frame of 60 bytes, from a guest to the other", 2),
    ("large", "network: a frame of 1,514 bytes, from a guest to the other", 2),
];

/// What is timed on both sides.
#[derive(Clone, Debug)]
struct Timed {
    about: String,
    unit: &'static str,
    caisson: f64,
    bare: f64,
}

/// Measures everything.
pub fn devices(paths: &Paths, args: &DevicesArgs) -> Result<(), Failure> {
    let lab = Lab::new(paths)?;
    let counted = counted(&lab)?;
    let timed = timed(&lab, args.runs)?;
    if args.json {
        let counted: Vec<_> =
            counted.iter().map(|(about, count)| json!({ "about": about, "instructions": count })).collect();
        let timed: Vec<_> = timed
            .iter()
            .map(|Timed { about, unit, caisson, bare }| {
                json!({ "about": about, "unit": unit, "caisson": caisson, "bare": bare, "ratio": caisson / bare })
            })
            .collect();
        println!("{:#}", json!({ "bench": "devices", "runs": args.runs, "counted": counted, "timed": timed }));
        return Ok(());
    }
    let text = tables(&counted, &timed);
    if args.book {
        let path = paths.root.join("docs/src/devices-tables.md");
        return std::fs::write(&path, text).about("write", &path);
    }
    print!("{text}");
    Ok(())
}

/// Instructions of each request, in two runs that must be alike.
fn counted(lab: &Lab) -> Result<Vec<(&'static str, u64)>, Failure> {
    let mut found = Found::new();
    for work in [Work::Disk, Work::Network] {
        let ready = lab.caisson(work, &work.counted(), true)?;
        let mut runs = Vec::new();
        for run in 1..=2 {
            let step = Step::begin(format!("counting, {work:?}, run {run} of 2"));
            runs.push(lab.run(&ready)?);
            step.done();
        }
        if let [first, second] = &runs[..]
            && first != second
        {
            return Err(Failure::new(Status::Failed, format!("two runs differ: {first:?} and {second:?}")));
        }
        found.extend(runs.remove(0));
    }
    COUNTED.iter().map(|&(name, about, parts)| Ok((about, each(&found, name)? / parts))).collect()
}

/// Nanoseconds of one request more.
fn each(found: &Found, name: &str) -> Result<u64, Failure> {
    let [short, long] = ROUNDS;
    let took = |count: u64| found.get(&format!("{name}-{count}")).copied();
    let each = took(long).zip(took(short)).and_then(|(long, short)| long.checked_sub(short));
    let each = each.map(|more| more / (long - short));
    each.ok_or_else(|| Failure::new(Status::Failed, format!("\"{name}\" wasn't counted: {found:?}")))
}

/// Throughput of the two sides, in turn; medians.
fn timed(lab: &Lab, runs: u32) -> Result<Vec<Timed>, Failure> {
    let mut sides: [Vec<Found>; 2] = Default::default();
    for work in [Work::Disk, Work::Network] {
        let ready = [lab.caisson(work, &work.timed(), false)?, lab.bare(work, &work.timed())?];
        for run in 1..=runs {
            let step = Step::begin(format!("by the wall's clock, {work:?}, round {run} of {runs}"));
            for (side, ready) in sides.iter_mut().zip(&ready) {
                side.push(lab.run(ready)?);
            }
            step.done();
        }
    }
    let figure = |about: String, unit, name: &str, amount: f64| -> Result<Timed, Failure> {
        let [caisson, bare] = sides.each_ref().map(|runs| median(runs, name).map(|took| amount / took));
        let missing = || Failure::new(Status::Failed, format!("\"{name}\" wasn't timed"));
        let (caisson, bare) = caisson.zip(bare).ok_or_else(missing)?;
        Ok(Timed { about, unit, caisson, bare })
    };
    // Bytes a nanosecond are 1,000 MB a second.
    let rate = |bytes: u64, count: u64| (bytes * count) as f64 * 1000.0;
    let mut timed = Vec::new();
    for (name, bytes, count) in READS {
        let about = format!("disk: reading, {} KiB at a time", bytes >> 10);
        timed.push(figure(about, "MB/s", &format!("read-{name}"), rate(bytes, count))?);
    }
    let (bytes, count) = SENT;
    timed.push(figure("network: TCP from a guest to the other".into(), "MB/s", "sent", rate(bytes, count))?);
    timed.push(figure("network: round trips of 60 bytes".into(), "1/s", "trips", TRIPS as f64 * 1e9)?);
    Ok(timed)
}

fn median(runs: &[Found], name: &str) -> Option<f64> {
    let mut times: Vec<u64> = runs.iter().filter_map(|found| found.get(name).copied()).collect();
    times.sort_unstable();
    times.get(times.len() / 2).map(|time| *time as f64)
}

fn tables(counted: &[(&str, u64)], timed: &[Timed]) -> String {
    let mut text = String::from("| what, with all that the guests themselves execute | instructions |\n|---|---|\n");
    for (about, count) in counted {
        let _ = writeln!(text, "| {about} | {count} |");
    }
    text.push_str("\n| what | Caisson | bare | ratio |\n|---|---|---|---|\n");
    for Timed { about, unit, caisson, bare } in timed {
        let _ = writeln!(text, "| {about} | {caisson:.1} {unit} | {bare:.1} {unit} | {:.2} |", caisson / bare);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_more_takes_is_the_difference() {
        let found = Found::from([("read-500".into(), 1_500), ("read-1500".into(), 23_500), ("odd-500".into(), 9)]);
        assert_eq!(each(&found, "read").unwrap(), 22);
        assert!(each(&found, "odd").is_err() && each(&found, "none").is_err());
    }

    #[test]
    fn the_middle_one_of_the_runs_counts() {
        let runs: Vec<Found> = [30, 10, 20].iter().map(|time| Found::from([("a".into(), *time)])).collect();
        assert_eq!((median(&runs, "a"), median(&runs, "b")), (Some(20.0), None));
    }

    #[test]
    fn tables_have_a_line_for_each() {
        let timed = [Timed { about: "x".into(), unit: "MB/s", caisson: 1.0, bare: 4.0 }];
        let text = tables(&[("a", 5)], &timed);
        assert!(text.contains("| a | 5 |\n") && text.contains("| x | 1.0 MB/s | 4.0 MB/s | 0.25 |\n"));
    }
}
