//! Services are killed under two guests that keep them busy. The supervisor starts them again, and itself is started
//! again by the kernel; the guests' shells go on. With a vmm goes its own guest and no other.

use std::time::Duration;

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::{Failure, Status};
use crate::image;
use crate::paths::Paths;

const GUESTS: [(&str, &str); 2] = [("a", "vcpus = 1\nmemory = \"512M\"\n"), ("b", "vcpus = 2\nmemory = \"512M\"\n")];
/// Fills memory that the guest never touched, so that memory is asked for it; `@` is a number.
const FILL: &str = "dd if=/dev/zero of=/tmp/@ bs=1M count=48 2>/dev/null; echo busy=$((@*3))";
/// Writes to the console.
const WRITE: &str = "seq 1000 1400; echo busy=$((@*3))";
/// Who is killed how often under what work.
const VICTIMS: [(&str, usize, &str); 7] = [
    ("memory", 3, FILL),
    ("console", 3, WRITE),
    ("notifier", 2, FILL),
    ("switch", 1, WRITE),
    ("sev-firmware", 1, WRITE),
    ("psp", 2, FILL),
    ("supervisor", 2, WRITE),
];
/// How long the guests work before a service is killed.
const HEADSTART: [Duration; 3] = [Duration::from_millis(150), Duration::from_millis(60), Duration::from_millis(20)];
/// Deaths of the supervisor that end the machine.
const LAST_DEATH: usize = 9;

/// The whole step.
pub fn run(paths: &Paths) -> Outcome {
    let mut outcome = Outcome::default();
    let parts = [
        ("in turn", in_turn as fn(&Paths) -> Result<usize, String>),
        ("the secure processor", the_processor),
        ("the supervisor again and again", again_and_again),
    ];
    for (name, done) in parts.map(|(name, part)| (name, part(paths))) {
        match done {
            Ok(checks) => outcome.passed += checks,
            Err(why) => outcome.failed.push(format!("{name}: {why}")),
        }
    }
    outcome
}

fn machine(paths: &Paths, vms: &[(&str, &str)]) -> Result<Witness, String> {
    Witness::boot(paths, None, vms).map_err(|failure| failure.text)
}

/// Kills a service and waits for its next life.
fn kill(machine: &mut Witness, name: &str) -> Result<(), String> {
    let lives = machine.lives(name);
    machine.kill(name)?;
    machine.until(&format!("another life of {name}"), SOON, |this| this.lives(name) > lives)
}

/// Each service in turn. How many checks passed.
fn in_turn(paths: &Paths) -> Result<usize, String> {
    let mut machine = machine(paths, &GUESTS)?;
    machine.is_up()?;
    let (mut checks, mut number) = (0, 0);
    for (name, times, work) in VICTIMS {
        for headstart in HEADSTART.into_iter().cycle().take(times) {
            number += 1;
            let line = work.replace('@', &number.to_string());
            (0..2).for_each(|guest| machine.types(guest, &line));
            machine.watches(headstart)?;
            kill(&mut machine, name)?;
            for guest in [0, 1] {
                machine.sees_or_asks(guest, &line, &format!("busy={}\r", number * 3), SOON)?;
                let (line, answer) = (format!("echo alive=$(({number}*7))"), format!("alive={}\r", number * 7));
                machine.asks(guest, &line, &answer, SOON)?;
            }
            checks += 1;
        }
    }
    // A vmm; and while its memory is taken back, those who do that.
    machine.types(0, &WRITE.replace('@', "100"));
    machine.kill("vmm-b")?;
    machine.until("the end of vmm-b", SOON, |this| this.logged("kernel", "Killed(vmm-b, life 0)"))?;
    for name in ["memory", "notifier", "supervisor"] {
        kill(&mut machine, name)?;
    }
    machine.asks(0, "echo alive=$((50*50))", "alive=2500\r", SOON)?;
    if machine.lives("vmm-a") != 1 || machine.lives("vmm-b") != 1 {
        return Err(machine.told("a vmm was started again"));
    }
    machine.types(0, "poweroff -f");
    let end = machine.ends(BOOT)?;
    let named = ["service \"vmm-b\" was killed", "service \"supervisor\" faulted"];
    if end.status != Status::Faulted || !named.iter().all(|what| end.text.contains(what)) {
        return Err(machine.told(&format!("it ended with {:?}: {}", end.status, end.text)));
    }
    if !machine.logged("vmm-a", "guest: powered off") {
        return Err(machine.told("the other guest didn't power off"));
    }
    match machine.account() {
        Some((before, after, 0)) if before == after => Ok(checks + 3),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}

/// The secure processor, under a guest that it launched and a plain one. How many checks passed.
fn the_processor(paths: &Paths) -> Result<usize, String> {
    let flat = image::guest(paths, "caisson-guest-flat").map_err(|failure| failure.text)?;
    let flat = format!("vcpus = 1\nmemory = \"64M\"\nkernel = {flat:?}\ncmdline = \"once\"\nencryption = \"sev\"\n");
    let mut machine = machine(paths, &[GUESTS[0], ("flat", &flat)])?;
    machine.until("the encrypted guest's memory is its own", BOOT, |this| this.wrote(1, " 0 wrong"))?;
    machine.until("the agent's line", BOOT, |this| this.logged("agent", "agent: ready"))?;
    machine.asks(0, "echo alive=$((3*3))", "alive=9\r", BOOT)?;
    let lives = machine.lives("sev-firmware");
    kill(&mut machine, "psp")?;
    machine.until("the end of vmm-flat", SOON, |this| {
        this.logged("supervisor", "vmm-flat ends, for the secure processor is gone")
            && this.logged("kernel", "Killed(vmm-flat, life 0)")
    })?;
    machine.until("another life of sev-firmware", SOON, |this| this.lives("sev-firmware") > lives)?;
    machine.asks(0, "echo alive=$((4*4))", "alive=16\r", SOON)?;
    machine.types(0, "poweroff -f");
    let end = machine.ends(BOOT)?;
    if end.status != Status::Faulted || !end.text.contains("service \"vmm-flat\" was killed") {
        return Err(machine.told(&format!("it ended with {:?}: {}", end.status, end.text)));
    }
    match machine.account() {
        Some((before, after, 0)) if before == after => Ok(4),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}

/// The supervisor dies as often as it is started. How many checks passed.
fn again_and_again(paths: &Paths) -> Result<usize, String> {
    let mut machine = machine(paths, &GUESTS[..1])?;
    machine.until("the agent's line", BOOT, |this| this.logged("agent", "agent: ready"))?;
    for _ in 1..LAST_DEATH {
        kill(&mut machine, "supervisor")?;
    }
    machine.kill("supervisor")?;
    let Failure { status, text } = machine.ends(SOON)?;
    if status == Status::Faulted && text.contains("supervisor") {
        return Ok(1);
    }
    Err(machine.told(&format!("it ended with {status:?}: {text}")))
}
