//! `cargo xtask bench boot`: from QEMU's start to the guest's shell, on Caisson and bare, interleaved.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::channels::Demux;
use crate::cli::BenchArgs;
use crate::failure::{Context, Failure, Status};
use crate::guests::{self, Machine};
use crate::image::{self, Built};
use crate::machine;
use crate::paths::Paths;
use crate::progress::Step;
use crate::qemu::Qemu;
use crate::script::Prompt;

/// A boot that takes longer than this has failed.
const LONGEST: Duration = Duration::from_secs(180);

/// Measures boots and says how they compare.
pub fn boot(paths: &Paths, args: &BenchArgs) -> Result<(), Failure> {
    let system = image::manifest(paths, args.machine.manifest.as_deref())?;
    let machine = guests::resolve(paths, &system, &args.machine)?;
    let built = image::build(paths, &system, &machine, args.machine.log)?;
    let folder = tempfile::tempdir().context("no folder for temporary files")?;
    let bundle = folder.path().join("bundle");
    std::fs::write(&bundle, &built.bundle).about("write", &bundle)?;
    let caisson = machine::arguments(&machine, &built.kernel, &bundle);
    let bare = bare(&machine);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=args.runs {
        let step = Step::begin(format!("round {round} of {}", args.runs));
        ours.push(time_to_shell(folder.path(), &caisson, Some(&built))?);
        theirs.push(time_to_shell(folder.path(), &bare, None)?);
        step.done();
    }
    let (caisson, bare) = (median(&ours), median(&theirs));
    let ratio = caisson / bare;
    if args.json {
        let report = json!({
            "bench": "boot", "unit": "seconds from QEMU's start to the guest's shell",
            "cpus": machine.cpus, "vcpus": machine.guests[0].vcpus,
            "caisson": { "runs": ours, "median": caisson },
            "bare": { "runs": theirs, "median": bare },
            "ratio": ratio,
        });
        println!("{report:#}");
    } else {
        println!("from QEMU's start to the guest's shell, median of {}:", args.runs);
        println!("  Caisson  {caisson:.2} s   ({})", list(&ours));
        println!("  bare     {bare:.2} s   ({})", list(&theirs));
        println!("  ratio    {ratio:.2}");
    }
    Ok(())
}

/// The same kernel, initramfs, command line, CPUs and memory without Caisson.
fn bare(machine: &Machine) -> Vec<String> {
    let guest = &machine.guests[0];
    let mut arguments = machine::hardware(guest.vcpus.into(), guest.memory, machine.icount);
    arguments.extend(["-kernel".into(), guest.kernel.display().to_string(), "-append".into(), guest.cmdline.clone()]);
    arguments.extend(guest.initrd.iter().flat_map(|initrd| ["-initrd".into(), initrd.display().to_string()]));
    arguments
}

/// Seconds until the first guest's shell waits at its prompt.
fn time_to_shell(folder: &std::path::Path, arguments: &[String], caisson: Option<&Built>) -> Result<f64, Failure> {
    let mut qemu = Qemu::start(folder, arguments, caisson.is_some())?;
    for mut log in [qemu.log.take(), qemu.kernel_log.take()].into_iter().flatten() {
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }
    qemu.console.set_read_timeout(Some(Duration::from_millis(10))).context("console")?;
    let mut demux = Demux::default();
    let mut prompt = Prompt::new(qemu.started);
    let mut arrived = qemu.started;
    let mut buffer = [0; 4096];
    loop {
        let count = match qemu.console.read(&mut buffer) {
            Ok(0) => None,
            Ok(count) => Some(count),
            Err(_) => Some(0),
        };
        let now = Instant::now();
        let Some(count) = count.filter(|_| now - qemu.started < LONGEST) else {
            let what = if caisson.is_some() { "Caisson" } else { "bare QEMU" };
            let said = qemu.end();
            let text = format!("{what} didn't come to a shell in {} s {}", LONGEST.as_secs(), said.trim());
            return Err(Failure::new(Status::Failed, text));
        };
        let bytes = &buffer[..count];
        if count > 0 {
            arrived = now;
        }
        if caisson.is_some() {
            demux.feed(bytes, |channel, bytes| {
                if channel == 1 {
                    prompt.feed(bytes, now);
                }
            });
        } else if count > 0 {
            prompt.feed(bytes, now);
        }
        if prompt.waits(now) {
            return Ok((arrived - qemu.started).as_secs_f64());
        }
    }
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn list(times: &[f64]) -> String {
    times.iter().map(|time| format!("{time:.2}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian;

    /// QEMU, the kernel and the initramfs come to a shell without Caisson too; then it isn't their fault.
    #[test]
    #[ignore = "boots a machine; `cargo xtask test` runs it"]
    fn the_guest_comes_to_a_shell_bare() {
        let paths = Paths::find().unwrap();
        let files = debian::guest_files(&paths, debian::KERNEL).unwrap();
        let mut arguments = machine::hardware(2, 512 << 20, false);
        let append = crate::cli::DEFAULT_CMDLINE.to_owned();
        let (kernel, initrd) = (files.kernel.display().to_string(), files.initramfs.display().to_string());
        arguments.extend(["-kernel".into(), kernel, "-initrd".into(), initrd, "-append".into(), append]);
        let folder = tempfile::tempdir().unwrap();
        let seconds = time_to_shell(folder.path(), &arguments, None).unwrap();
        println!("{seconds:.2} s");
        assert!(seconds < 60.0);
    }
}
