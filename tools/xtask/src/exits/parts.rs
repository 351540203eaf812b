//! `cargo xtask bench exits --where`: where the instructions of one round trip go, by part and source file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use addr2line::Loader;
use serde_json::json;

use super::trace::{self, Executed, Side};
use super::{Bench, Failure, Paths, Status};

/// Parts of a round trip, and what a file or symbol of ring 0 must have in its name to belong to them. The first that
/// fits counts; what fits none is routing.
const PARTS: [(&str, &[&str]); 5] = [
    ("world switch", &["svm/world.rs", "world::switch", "svm/resident.rs"]),
    ("entry and exit of ring 0", &["caisson_syscall", "caisson_leave", "hw/src/syscall.rs"]),
    ("address space", &["hw/src/space.rs", "hw/src/home.rs", "hw/src/segments.rs", "hw/src/machine.rs"]),
    ("save and restore of the vCPU", &["hw/src/svm/", "core/src/svm/"]),
    ("messages", &["ipc-proto/"]),
];
const ROUTE: &str = "route: whose turn, who runs";
const SERVICE: &str = "services";

/// One part's instructions, by source file.
type Files = BTreeMap<String, usize>;

/// Measures and prints.
pub fn parts(paths: &Paths, kind: &str, json: bool) -> Result<(), Failure> {
    let call = kind == "call";
    let cmdline = if call { String::new() } else { format!("repeat={kind}") };
    let bench = Bench::build(paths, &cmdline)?;
    let executed = trace::record(&bench, if call { "bench end" } else { "exits repeating" })?;
    let trips = if call { calls(&executed) } else { exits(&executed) };
    let Some((trip, alike)) = usual(&trips) else {
        return Err(Failure::new(Status::Failed, "no round trip was seen"));
    };
    let service = bench.built.services.iter().find(|service| match call {
        true => service.name == "bench-caller",
        false => service.vm.is_some(),
    });
    let service = service.map_or(bench.built.kernel.as_path(), |service| &service.program);
    let found = attribute(trip, &bench.built.kernel, service, call)?;
    let total: usize = found.values().flat_map(Files::values).sum();
    if json {
        println!("{:#}", json!({ "bench": "exits", "where": kind, "instructions": total, "parts": found }));
        return Ok(());
    }
    println!("{kind}: {total} instructions a round trip ({alike} of {} seen were alike)", trips.len());
    for (part, files) in &found {
        println!("{:>6}  {part}", files.values().sum::<usize>());
        let mut files: Vec<_> = files.iter().collect();
        files.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        files.iter().for_each(|(file, count)| println!("{count:>12}  {file}"));
    }
    Ok(())
}

/// What was executed between leaving a guest and entering it again.
fn exits(executed: &[Executed]) -> Vec<&[Executed]> {
    let mut trips: Vec<_> = executed.split(|one| one.side == Side::Guest).filter(|trip| !trip.is_empty()).collect();
    trips.pop();
    trips
}

/// What was executed from one system call to the next at the same place: a caller's.
fn calls(executed: &[Executed]) -> Vec<&[Executed]> {
    let entries: Vec<usize> = (1..executed.len())
        .filter(|&at| executed[at].side == Side::Kernel && executed[at - 1].side == Side::Service)
        .collect();
    let place = |at: usize| executed[at - 1].address;
    entries.windows(3).filter(|at| place(at[0]) == place(at[2])).map(|at| &executed[at[0]..at[2]]).step_by(2).collect()
}

/// The round trip whose length is the most frequent, and how many have it.
fn usual<'a>(trips: &[&'a [Executed]]) -> Option<(&'a [Executed], usize)> {
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    trips.iter().for_each(|trip| *lengths.entry(trip.len()).or_default() += 1);
    let (length, alike) = lengths.into_iter().max_by_key(|&(length, count)| (count, length))?;
    trips.iter().find(|trip| trip.len() == length).map(|trip| (*trip, alike))
}

/// Instructions by part and file. Two services that call each other lie at the same addresses, so theirs have no file.
fn attribute(
    trip: &[Executed], kernel: &Path, service: &Path, call: bool,
) -> Result<BTreeMap<&'static str, Files>, Failure> {
    let open = |path: &Path| {
        Loader::new(path).map_err(|why| Failure::new(Status::Failed, format!("{}: {why}", path.display())))
    };
    let (kernel, service) = (open(kernel)?, open(service)?);
    let mut found: BTreeMap<&str, Files> = BTreeMap::new();
    for one in trip {
        let (part, file) = match one.side {
            Side::Kernel => {
                let file = source(&kernel, one.address);
                let part = PARTS.iter().find(|(_, names)| names.iter().any(|name| file.contains(name)));
                (part.map_or(ROUTE, |(part, _)| part), file)
            }
            _ if call => (SERVICE, "caller and callee".into()),
            _ => (SERVICE, source(&service, one.address)),
        };
        *found.entry(part).or_default().entry(file).or_default() += 1;
    }
    Ok(found)
}

/// The innermost source file of ours; the symbol where there is none, as in assembly.
fn source(program: &Loader, address: u64) -> String {
    const OURS: [&str; 5] = ["kernel/", "services/", "ipc-proto/", "board/", "tools/"];
    let mut files = Vec::new();
    if let Ok(mut frames) = program.find_frames(address) {
        while let Ok(Some(frame)) = frames.next() {
            files.extend(frame.location.and_then(|location| location.file).map(str::to_owned));
        }
    }
    let ours = |file: &String| OURS.iter().find_map(|ours| file.find(ours).filter(|at| file[*at..].ends_with(".rs")));
    let outside = |file: &str| ["/rustc/", "/registry/", "/library/"].iter().any(|part| file.contains(part));
    let own = files.iter().find(|file| !outside(file) && ours(file).is_some());
    match own {
        Some(file) => file[ours(file).unwrap_or(0)..].to_owned(),
        None => {
            let symbol = program.find_symbol(address).unwrap_or("?");
            format!("{:#}", rustc_demangle::demangle(symbol))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sides: &[(u64, Side)]) -> Vec<Executed> {
        sides.iter().map(|&(address, side)| Executed { address, side }).collect()
    }

    #[test]
    fn an_exit_is_what_lies_between_a_guests_instructions() {
        use Side::*;
        let all =
            run(&[(1, Guest), (2, Kernel), (3, Kernel), (1, Guest), (2, Kernel), (3, Kernel), (1, Guest), (9, Kernel)]);
        let trips = exits(&all);
        assert_eq!(trips.len(), 2);
        assert_eq!(usual(&trips).map(|(trip, alike)| (trip.len(), alike)), Some((2, 2)));
    }

    #[test]
    fn a_call_ends_where_the_same_place_calls_again() {
        use Side::*;
        let once = [(1, Service), (2, Kernel), (5, Service), (2, Kernel)];
        let all = run(&[once, once, once].concat());
        let trips = calls(&all);
        assert_eq!(trips.iter().map(|trip| trip.len()).collect::<Vec<_>>(), [4, 4]);
    }
}
