//! A hostile guest is let loose beside a Linux guest, whose shell must go on answering. What it gets at each attempt is
//! what the same file gets bare in the same QEMU, but for a list of differences; and each way in which it can end
//! ends it alone.

mod compare;

use std::path::Path;
use std::time::{Duration, Instant};

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::Status;
use crate::kut::outcome::{self, End};
use crate::paths::Paths;
use crate::{image, machine};

/// The guest's package.
const PACKAGE: &str = "caisson-guest-hostile";
/// Where it gets something else than bare, beside the guest.
const DIFFERENCES: &str = "tools/guests/hostile/differences.txt";
/// Its CPUs and memory, here and there.
const CPUS: u16 = 2;
const MEMORY: u64 = 64 << 20;
/// QEMU's devices that it uses.
const DEVICES: &str = "-device isa-debug-exit,iobase=0xf4,iosize=0x04 -device pc-testdev";
/// How long it may take for everything.
const LONGEST: Duration = Duration::from_secs(900);
/// The guest that must not notice.
const WITNESS: (&str, &str) = ("witness", "vcpus = 2\nmemory = \"256M\"\n");
/// How often that one must answer meanwhile.
const ANSWERS: u64 = 5;
/// How long those that do anything may do it.
const WILD: Duration = Duration::from_secs(60);

/// It comes to its end, as if nothing were.
const SURVIVED: &str = "ended its test with 0";
const TRIPLE: &str = "crashed: triple fault";
const UNEMULATED: &str = "crashed: it used what can't be emulated";
/// How each life ends; nothing where it may end in any way or not at all.
const ENDS: [&[(&str, &str)]; 2] = [
    &[
        ("triple", TRIPLE),
        ("idt-hole", UNEMULATED),
        ("stack-hole", UNEMULATED),
        ("gdt-hole", UNEMULATED),
        ("tables-hole", UNEMULATED),
        ("vector-hole", SURVIVED),
        ("call-hole", SURVIVED),
        ("task-switch", SURVIVED),
    ],
    &[
        ("halt", "crashed"),
        ("paging-off", ""),
        ("reset", "powered off"),
        ("off", "powered off"),
        ("panic", "crashed: kernel panic"),
        ("wild-64", ""),
        ("wild-32", ""),
        ("wild-16", ""),
    ],
];

/// The whole step: a check for each line of what it got, for each end, and one for each promise about the others.
pub fn run(paths: &Paths) -> Outcome {
    let image = match image::guest(paths, PACKAGE) {
        Ok(image) => image,
        Err(failure) => return Outcome::failed(failure.text),
    };
    let mut outcome = Outcome::default();
    let mut add = |name: String, part: Result<Outcome, String>| match part {
        Ok(part) => {
            outcome.passed += part.passed;
            outcome.failed.extend(part.failed.into_iter().map(|why| format!("{name}: {why}")));
        }
        Err(why) => outcome.failed.push(format!("{name}: {why}")),
    };
    add("attempts".into(), attempts(paths, &image));
    for (number, ends) in ENDS.into_iter().enumerate() {
        add(format!("ends {}", number + 1), lives(paths, &image, ends));
    }
    outcome
}

/// The file of a VM with the hostile guest.
fn vm(image: &Path, cpus: u16, cmdline: &str) -> String {
    let (kernel, memory) = (image.display(), MEMORY >> 20);
    format!(
        "vcpus = {cpus}\nmemory = \"{memory}M\"\nkernel = \"{kernel}\"\ncmdline = \"{cmdline}\"\ntest-devices = true\n\
         on-reset = \"stop\"\n"
    )
}

/// What it prints bare.
fn bare(image: &Path) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut arguments = machine::hardware(CPUS, MEMORY, false);
    arguments.extend(DEVICES.split(' ').map(String::from));
    arguments.extend(["-kernel".into(), image.display().to_string(), "-append".into(), "machine=bare".into()]);
    let outcome = outcome::run(folder.path(), &arguments, None, LONGEST.as_secs()).map_err(|failure| failure.text)?;
    if outcome.end == End::Passed { Ok(outcome.output) } else { Err(format!("bare it ends so: {}", outcome.end)) }
}

/// Boots these, of which the last is the witness, and lets the others go once that one is up.
fn boot(paths: &Paths, vms: &[(&str, &str)]) -> Result<Witness, String> {
    let mut machine = Witness::boot(paths, None, vms).map_err(|failure| failure.text)?;
    machine.is_up()?;
    (0..vms.len() - 1).for_each(|guest| machine.types(guest, ""));
    Ok(machine)
}

/// Every attempt, here and bare.
fn attempts(paths: &Paths, image: &Path) -> Result<Outcome, String> {
    let bare = bare(image)?;
    let known = paths.root.join(DIFFERENCES);
    let known = std::fs::read_to_string(&known).map_err(|error| format!("{}: {error}", known.display()))?;
    let hostile = vm(image, CPUS, "go=key");
    let mut machine = boot(paths, &[("hostile", &hostile), WITNESS])?;
    witnessed(&mut machine, 1, LONGEST, |machine| is_over(machine, "hostile"))?;
    let ours = machine.text(0).replace('\r', "");
    let mut outcome = concluded(&mut machine, 1)?;
    keep(&paths.target.join("hostile-guest"), &[("here.txt", &ours), ("bare.txt", &bare)])?;
    let ended = machine.heard.iter().any(|what| what == "guest \"hostile\" ended its test with 0");
    promise(&mut outcome, ended, || format!("it ended otherwise: {:?}", machine.heard));
    let (alike, wrong) = compare::compare(&ours, &bare, &known);
    outcome.passed += alike;
    outcome.failed.extend(wrong);
    Ok(outcome)
}

/// Leaves what was printed where it can be looked at.
fn keep(folder: &Path, files: &[(&str, &str)]) -> Result<(), String> {
    let about = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(about)?;
    files.iter().try_for_each(|(name, text)| std::fs::write(folder.join(name), text)).map_err(about)
}

/// The lives that end in these ways, all at once.
fn lives(paths: &Paths, image: &Path, ends: &[(&str, &str)]) -> Result<Outcome, String> {
    let files: Vec<String> =
        ends.iter().map(|(name, _)| vm(image, 1, &format!("go=key parts=none end={name}"))).collect();
    let mut vms: Vec<(&str, &str)> = ends.iter().zip(&files).map(|((name, _), file)| (*name, file.as_str())).collect();
    vms.push(WITNESS);
    let mut machine = boot(paths, &vms)?;
    let all_over = |machine: &Witness, only: fn(&str) -> bool| {
        ends.iter().filter(|(_, how)| only(how)).all(|(name, _)| is_over(machine, name))
    };
    witnessed(&mut machine, ends.len(), LONGEST, |machine| all_over(machine, |how| !how.is_empty()))?;
    let start = Instant::now();
    witnessed(&mut machine, ends.len(), LONGEST, |machine| all_over(machine, |_| true) || start.elapsed() > WILD)?;
    let wild: Vec<&str> = ends.iter().map(|(name, _)| *name).filter(|name| !is_over(&machine, name)).collect();
    for name in wild {
        machine.kill(&format!("vmm-{name}"))?;
        machine.until(&format!("the end of {name}"), SOON, |machine| is_over(machine, name))?;
    }
    let mut outcome = concluded(&mut machine, ends.len())?;
    for (name, how) in ends.iter().filter(|(_, how)| !how.is_empty()) {
        let told = machine.heard.iter().find(|what| names(what, name));
        let so = told.is_some_and(|what| what.contains(how));
        promise(&mut outcome, so, || format!("{name} ended so: {told:?}"));
    }
    Ok(outcome)
}

fn promise(outcome: &mut Outcome, kept: bool, what: impl FnOnce() -> String) {
    match kept {
        true => outcome.passed += 1,
        false => outcome.failed.push(what()),
    }
}

/// Whether this tells of the guest's end, or its vmm's.
fn names(what: &str, guest: &str) -> bool {
    what.starts_with(&format!("guest \"{guest}\" ")) || what.starts_with(&format!("service \"vmm-{guest}\" "))
}

fn is_over(machine: &Witness, guest: &str) -> bool {
    machine.heard.iter().any(|what| names(what, guest))
}

/// Has the witness answer until something is so, and some times at least.
fn witnessed(
    machine: &mut Witness, witness: usize, within: Duration, so: impl Fn(&Witness) -> bool,
) -> Result<(), String> {
    let (start, mut answers) = (Instant::now(), 0);
    loop {
        answers += 1;
        let (line, answer) = (format!("echo alive=$(({answers}*7))"), format!("alive={}\r", answers * 7));
        machine.asks(witness, &line, &answer, SOON)?;
        if answers >= ANSWERS && so(machine) {
            return Ok(());
        }
        if start.elapsed() > within {
            return Err(machine.told("it takes too long"));
        }
    }
}

/// Lets the witness power off, and sees that everything is as it was.
fn concluded(machine: &mut Witness, witness: usize) -> Result<Outcome, String> {
    machine.types(witness, "poweroff -f");
    let end = machine.ends(BOOT)?;
    let mut outcome = Outcome::default();
    let off = machine.heard.iter().any(|what| what == "guest \"witness\" powered off");
    promise(&mut outcome, off, || format!("the witness didn't power off: {:?}", machine.heard));
    let killed = machine.heard.iter().any(|what| what.ends_with("was killed"));
    let well = matches!(end.status, Status::Clean | Status::GuestCrashed) || killed && end.status == Status::Faulted;
    promise(&mut outcome, well, || format!("it ended with {:?}: {}", end.status, end.text));
    let faults = machine.lines.iter().filter(|line| line.who == "kernel" && line.what.starts_with("Faulted")).count();
    promise(&mut outcome, faults == 0, || format!("{faults} services faulted"));
    let account = machine.account();
    let adds_up = account.is_some_and(|(before, after, leaked)| before == after && leaked == 0);
    promise(&mut outcome, adds_up, || format!("frames free before and after, and leaked: {account:?}"));
    if !outcome.failed.is_empty() {
        machine.told("not everything is as it was");
    }
    Ok(outcome)
}
