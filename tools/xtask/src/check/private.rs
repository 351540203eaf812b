//! Guests of each kind make memory private and shared again while memory and notifier are killed: they find what they wrote, the
//! host reads what is shared and nothing else, and every frame is there at the end.

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::Status;
use crate::image;
use crate::paths::Paths;

/// The guest that stays.
const WITNESS: (&str, &str) = ("a", "vcpus = 1\nmemory = \"256M\"\n");
/// What the others are: name, their files' lines, what is on their command lines.
const KINDS: [(&str, &str, &str); 3] = [
    ("plain", "", "plain rounds=1500 seed=11"),
    ("sev", "encryption = \"sev\"\n", "rounds=1000 seed=22"),
    ("snp", "encryption = \"sev-snp\"\n", "rounds=1000 seed=33"),
];
/// Who is killed under them, in turn.
const VICTIMS: [&str; 6] = ["memory", "notifier", "memory", "memory", "notifier", "memory"];

/// The whole step.
pub fn run(paths: &Paths) -> Outcome {
    match private(paths) {
        Ok(checks) => Outcome::passed(checks),
        Err(why) => Outcome::failed(why),
    }
}

fn private(paths: &Paths) -> Result<usize, String> {
    let kernel = image::guest(paths, "caisson-guest-private").map_err(|failure| failure.text)?;
    let file = |(_, lines, cmdline): &(&str, &str, &str)| {
        format!("vcpus = 1\nmemory = \"64M\"\nkernel = {kernel:?}\ncmdline = {cmdline:?}\n{lines}")
    };
    let files = KINDS.each_ref().map(file);
    let mut vms = vec![WITNESS];
    vms.extend(KINDS.iter().zip(&files).map(|((name, ..), file)| (*name, file.as_str())));
    let mut machine = Witness::boot(paths, None, &vms).map_err(|failure| failure.text)?;
    machine.until("the agent's line", BOOT, |this| this.logged("agent", "agent: ready"))?;
    machine.until("all guests at work", BOOT, |this| (1..=3).all(|guest| this.wrote(guest, "private: round ")))?;
    for victim in VICTIMS {
        let lives = machine.lives(victim);
        machine.forgive(victim)?;
        machine.kill(victim)?;
        machine.until(&format!("another life of {victim}"), SOON, |this| this.lives(victim) > lives)?;
    }
    machine.until("the guests' ends", BOOT, |this| (1..=3).all(|guest| this.wrote(guest, " wrong")))?;
    let mut checks = VICTIMS.len();
    for (guest, (name, ..)) in (1..).zip(KINDS) {
        let text = machine.text(guest);
        let seen = |what: &str| text.contains(what);
        if !seen(" 0 refused, 0 wrong") {
            return Err(machine.told(&format!("guest {name} was refused something, or found memory changed")));
        }
        checks += 1;
    }
    // An encrypted guest's host can't even read the instruction that asks it to read.
    if !machine.wrote(1, "seen-while-shared-") {
        return Err(machine.told("the host doesn't read what is shared"));
    }
    if machine.wrote(1, "seen-while-private") {
        return Err(machine.told("the host reads what is private"));
    }
    machine.asks(0, "echo alive=$((3*3))", "alive=9\r", BOOT)?;
    machine.types(0, "poweroff -f");
    let end = machine.ends(BOOT)?;
    // Each death was forgiven.
    if end.status != Status::Clean {
        return Err(machine.told(&format!("it ended with {:?}: {}", end.status, end.text)));
    }
    match machine.account() {
        Some((before, after, 0)) if before == after => Ok(checks + 4),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}
