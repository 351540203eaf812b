//! `cargo xtask tcb`: what runs in ring 0, in numbers that fail the build when they grow too large.

mod cfg;
mod dependencies;
mod lines;
mod panics;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use caisson_proto::abi::Syscall;
use caisson_proto::kernel::KernelCall;
use serde::Serialize;

use crate::cli::LogLevel;
use crate::failure::{Context, Failure, Status};
use crate::image;
use crate::paths::Paths;
use lines::Count;

/// Lines of ours in ring 0 at the most.
const MOST_LINES: usize = 6000;
/// System calls at the most.
const MOST_SYSCALLS: usize = 12;
/// Our crates that are linked into ring 0 as a whole, with their folders.
const RING0: [(&str, &str); 4] = [
    ("kernel/core", "kernel/core/src"),
    ("kernel/hw", "kernel/hw/src"),
    ("kernel/image", "kernel/image/src"),
    ("board/qemu/boot", "board/qemu/boot/src"),
];
/// The crate of which ring 0 has a part.
const PROTO: (&str, &str) = ("ipc-proto", "ipc-proto/src");
/// Where unsafe code may be.
const UNSAFE_PLACES: [&str; 5] = ["kernel/hw", "services/rt", "board/qemu/boot", "board/epyc/boot", "tools/guests"];

/// A crate of ours in ring 0.
#[derive(Debug, Serialize)]
struct Crate {
    name: String,
    files: Vec<(String, usize)>,
    lines: usize,
    assembly: usize,
    unsafe_blocks: usize,
}

/// Everything that is reported.
#[derive(Debug, Serialize)]
struct Report {
    crates: Vec<Crate>,
    lines: usize,
    most_lines: usize,
    unsafe_blocks: usize,
    unsafe_blocks_per_1000_lines: f64,
    unsafe_outside_its_place: Vec<String>,
    dependencies: Vec<dependencies::Dependency>,
    dependency_lines: usize,
    system_calls: usize,
    kernel_operations: usize,
    panics: panics::Panics,
}

/// Counts, prints, and fails if a bound is broken.
pub fn tcb(paths: &Paths, json: bool, files: bool) -> Result<(), Failure> {
    let system = image::manifest(paths, None)?;
    let kernel = image::kernel(paths, &system, LogLevel::Warn)?;
    let report = report(paths, &system.kernel.package, &kernel)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report).context("report")?);
    } else {
        print(&report, files);
    }
    let mut broken = Vec::new();
    if report.lines > MOST_LINES {
        broken.push(format!("{} lines of ours are in ring 0; at most {MOST_LINES} may be", report.lines));
    }
    if !report.unsafe_outside_its_place.is_empty() {
        broken.push(format!("unsafe code outside its place: {}", report.unsafe_outside_its_place.join(", ")));
    }
    if report.system_calls > MOST_SYSCALLS {
        broken.push(format!("{} system calls; at most {MOST_SYSCALLS} may be", report.system_calls));
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::new(Status::Failed, broken.join("; "))) }
}

fn report(paths: &Paths, package: &str, kernel: &Path) -> Result<Report, Failure> {
    let mut crates = Vec::new();
    let mut used = BTreeSet::new();
    for (name, folder) in RING0 {
        let files = rust_files(&paths.root.join(folder))?;
        crates.push(measure(&paths.root, name, &files)?);
        for file in &files {
            lines::modules(&read(file)?, "caisson_proto", &mut used);
        }
    }
    crates.push(measure(&paths.root, &format!("{} (what the above use)", PROTO.0), &proto_files(paths, used)?)?);
    let mut outside = Vec::new();
    for file in rust_files(&paths.root)? {
        let place = file.strip_prefix(&paths.root).unwrap_or(&file);
        if !UNSAFE_PLACES.iter().any(|allowed| place.starts_with(allowed)) {
            let blocks = lines::count(&read(&file)?).unsafe_blocks;
            if blocks > 0 {
                outside.push(format!("{} ({blocks})", place.display()));
            }
        }
    }
    let lines = crates.iter().map(|one| one.lines + one.assembly).sum();
    let unsafe_blocks = crates.iter().map(|one| one.unsafe_blocks).sum();
    let dependencies = dependencies::of(paths, package)?;
    Ok(Report {
        lines,
        most_lines: MOST_LINES,
        unsafe_blocks,
        unsafe_blocks_per_1000_lines: unsafe_blocks as f64 * 1000.0 / (lines as f64).max(1.0),
        unsafe_outside_its_place: outside,
        dependency_lines: dependencies.iter().map(|one| one.lines).sum(),
        dependencies,
        system_calls: Syscall::ALL.len(),
        kernel_operations: KernelCall::OPERATIONS.len(),
        panics: panics::reachable(kernel)?,
        crates,
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).about("read", path)
}

/// Source files under a folder, without tests, benchmarks, build scripts and what is built.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).about("read", folder)?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", "tests", "benches", "fuzz", "docs"].contains(&name.as_str()) && !name.starts_with('.') {
                files.extend(rust_files(&path)?);
            }
        } else if ["rs", "s", "S"].iter().any(|ext| path.extension().is_some_and(|e| e == *ext))
            && !["build.rs", "tests.rs"].contains(&name.as_str())
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files of ipc-proto that ring 0 uses: those named, and those that these name.
fn proto_files(paths: &Paths, mut used: BTreeSet<String>) -> Result<Vec<PathBuf>, Failure> {
    let folder = paths.root.join(PROTO.1);
    used.insert("lib".into());
    loop {
        let mut found = used.clone();
        for name in used.iter().filter(|name| *name != "lib") {
            let path = folder.join(format!("{name}.rs"));
            if path.is_file() {
                lines::modules(&read(&path)?, "crate", &mut found);
            }
        }
        if found == used {
            break;
        }
        used = found;
    }
    Ok(used.iter().map(|name| folder.join(format!("{name}.rs"))).filter(|path| path.is_file()).collect())
}

fn measure(root: &Path, name: &str, files: &[PathBuf]) -> Result<Crate, Failure> {
    let mut total = Count::default();
    let mut each = Vec::new();
    for path in files {
        let count = match path.extension().is_some_and(|extension| extension == "rs") {
            true => lines::count(&read(path)?),
            false => lines::count_assembly(&read(path)?),
        };
        each.push((path.strip_prefix(root).unwrap_or(path).display().to_string(), count.rust + count.assembly));
        total.rust += count.rust;
        total.assembly += count.assembly;
        total.unsafe_blocks += count.unsafe_blocks;
    }
    Ok(Crate {
        name: name.into(),
        files: each,
        lines: total.rust,
        assembly: total.assembly,
        unsafe_blocks: total.unsafe_blocks,
    })
}

fn print(report: &Report, files: bool) {
    println!("Ours in ring 0 (without comments, blank lines and tests):");
    println!("  {:<34} {:>5} {:>6} {:>8} {:>7}", "", "files", "lines", "assembly", "unsafe");
    for one in &report.crates {
        let Crate { name, files, lines, assembly, unsafe_blocks } = one;
        println!("  {name:<34} {:>5} {lines:>6} {assembly:>8} {unsafe_blocks:>7}", files.len());
    }
    if files {
        let mut all: Vec<&(String, usize)> = report.crates.iter().flat_map(|one| &one.files).collect();
        all.sort_by_key(|(_, lines)| std::cmp::Reverse(*lines));
        all.iter().for_each(|(name, lines)| println!("    {lines:>5} {name}"));
    }
    println!("  lines in all: {} of {} allowed", report.lines, report.most_lines);
    println!(
        "  unsafe blocks: {} ({:.1} per 1000 lines); outside their place: {}",
        report.unsafe_blocks,
        report.unsafe_blocks_per_1000_lines,
        if report.unsafe_outside_its_place.is_empty() {
            "none".into()
        } else {
            report.unsafe_outside_its_place.join(", ")
        }
    );
    println!("Linked with it from crates.io, {} lines in all (an upper bound: whole crates):", report.dependency_lines);
    for dependency in &report.dependencies {
        println!("  {:<28} {:<10} {:>6}", dependency.name, dependency.version, dependency.lines);
    }
    println!("System calls: {}; kernel operations: {}", report.system_calls, report.kernel_operations);
    println!("Calls of panic functions in the linked kernel: {}", report.panics.calls);
    for caller in &report.panics.callers {
        println!("  {} × {} in {}", caller.calls, caller.panics.join(", "), caller.function);
    }
}
