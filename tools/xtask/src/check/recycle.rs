//! An encrypted guest is launched, run and given up again and again, until the ASIDs of its class are used up several
//! times. What the kernel and the secure processor did for it is judged by the kernel's log.

use std::collections::BTreeSet;

use caisson_proto::mailbox::{ACTIVATE, DECOMMISSION, DF_FLUSH, INIT, SNP_ACTIVATE, SNP_DECOMMISSION, SNP_DF_FLUSH};

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::Status;
use crate::image;
use crate::paths::Paths;

/// What is launched: the kind, as a VM's file has it, and how many ASIDs QEMU's board has for it.
const KINDS: [(&str, usize); 2] = [("sev", 4), ("sev-snp", 2)];
/// CPUs of the machine, with the one that runs no guest.
const CPUS: usize = 3;
/// How often they are used up.
const ROUNDS: usize = 3;
/// The guest that must not notice.
const WITNESS: (&str, &str) = ("a", "vcpus = 1\nmemory = \"256M\"\n");
/// What the other writes in each of its lives.
const WELL: &str = "flat: 262144 words, 0 wrong";

/// What the kernel said that it or the secure processor did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    /// This CPU wrote its caches back and invalidated them.
    Flushed(usize),
    /// This command succeeded.
    Done(u16),
    /// This command failed.
    Failed(u16),
}

impl Did {
    /// Reads one of the kernel's lines.
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(['(', ')', ',', ' ']).filter(|word| !word.is_empty()).collect();
        match *words.as_slice() {
            ["WroteBack", "CpuId", cpu, "true"] => Some(Self::Flushed(cpu.parse().ok()?)),
            // SNP's commands for the same.
            ["Rung", command, "0"] => Some(Self::Done(match command.parse().ok()? {
                SNP_DF_FLUSH => DF_FLUSH,
                SNP_ACTIVATE => ACTIVATE,
                SNP_DECOMMISSION => DECOMMISSION,
                command => command,
            })),
            ["Rung", command, _] => Some(Self::Failed(command.parse().ok()?)),
            _ => None,
        }
    }
}

/// Counts how often the ASIDs were recycled and how many guests were activated since the platform was initialised.
/// Every CPU must have flushed before each DF_FLUSH and none at any other time; and after the first, that comes when no
/// ASID is left and a guest wants one.
fn judge(log: impl Iterator<Item = Did>, cpus: usize, asids: usize) -> Result<(usize, usize), String> {
    let (mut flushed, mut left, mut rounds, mut activated) = (BTreeSet::new(), 0, 0, 0);
    for did in log.skip_while(|did| *did != Did::Done(INIT)) {
        match did {
            Did::Flushed(_) if rounds > 0 && left > 0 => return Err(format!("a flush with {left} ASIDs left")),
            Did::Flushed(cpu) if !flushed.insert(cpu) => return Err(format!("CPU {cpu} flushed twice")),
            Did::Done(DF_FLUSH) if flushed.len() != cpus => {
                return Err(format!("DF_FLUSH when only {flushed:?} of {cpus} CPUs had flushed"));
            }
            Did::Done(DF_FLUSH) => (flushed, left, rounds) = (BTreeSet::new(), asids, rounds + 1),
            Did::Done(ACTIVATE) if left == 0 => return Err("a guest got an ASID when none was left".into()),
            Did::Done(ACTIVATE) if !flushed.is_empty() => return Err("a guest got an ASID amid the flush".into()),
            Did::Done(ACTIVATE) => (left, activated) = (left - 1, activated + 1),
            Did::Failed(command) => return Err(format!("command {command:#x} failed")),
            _ => {}
        }
    }
    Ok((rounds, activated))
}

/// The whole step.
pub fn run(paths: &Paths) -> Outcome {
    let mut outcome = Outcome::default();
    for (encryption, asids) in KINDS {
        match recycled(paths, encryption, asids) {
            Ok(checks) => outcome.passed += checks,
            Err(why) => outcome.failed.push(format!("{encryption}: {why}")),
        }
    }
    outcome
}

fn recycled(paths: &Paths, encryption: &str, asids: usize) -> Result<usize, String> {
    let flat = image::guest(paths, "caisson-guest-flat").map_err(|failure| failure.text)?;
    let flat = format!(
        "vcpus = 1\nmemory = \"64M\"\nkernel = {flat:?}\nencryption = {encryption:?}\non-reset = \"restart\"\n"
    );
    let mut machine = Witness::boot(paths, None, &[WITNESS, ("flat", &flat)]).map_err(|failure| failure.text)?;
    let lives = asids * ROUNDS + 1;
    machine.until("the agent's line", BOOT, |this| this.logged("agent", "agent: ready"))?;
    for life in 1..=lives {
        machine.forgive("vmm-flat")?;
        machine.until(&format!("life {life} of the encrypted guest"), BOOT, |this| {
            this.text(1).matches(WELL).count() >= life
        })?;
    }
    machine.asks(0, "echo alive=$((3*3))", "alive=9\r", BOOT)?;
    // Nobody forgives any more that it resets itself.
    machine.until("the end of vmm-flat", SOON, |this| this.logged("supervisor", "vmm-flat died too often"))?;
    machine.types(0, "poweroff -f");
    let end = machine.ends(BOOT)?;
    if end.status != Status::GuestCrashed {
        return Err(machine.told(&format!("it ended with {:?}: {}", end.status, end.text)));
    }
    if machine.text(1).matches(" wrong").count() != machine.text(1).matches(WELL).count() {
        return Err(machine.told("the guest found memory changed"));
    }
    let log = || machine.lines.iter().filter(|line| line.who == "kernel").filter_map(|line| Did::read(&line.what));
    let (rounds, activated) = judge(log(), CPUS, asids).map_err(|why| machine.told(&why))?;
    let gone = log().filter(|did| *did == Did::Done(DECOMMISSION)).count();
    if rounds < ROUNDS + 1 || activated < lives || gone != activated {
        let all = format!("{activated} guests activated and {gone} gone, {rounds} times recycled");
        return Err(machine.told(&all));
    }
    match machine.account() {
        Some((before, after, 0)) if before == after => Ok(lives + rounds + 3),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush() -> Vec<Did> {
        vec![Did::Flushed(1), Did::Flushed(0), Did::Done(DF_FLUSH)]
    }

    fn activations(count: usize) -> Vec<Did> {
        vec![Did::Done(ACTIVATE); count]
    }

    fn judged(parts: &[Vec<Did>]) -> Result<(usize, usize), String> {
        // What comes before doesn't count.
        let before = [flush(), flush(), vec![Did::Done(INIT)]].concat();
        judge(before.into_iter().chain(parts.concat()), 2, 3)
    }

    #[test]
    fn recycling_when_none_is_left_is_right() {
        assert_eq!(judged(&[flush(), activations(3), flush(), activations(1)]), Ok((2, 4)));
    }

    #[test]
    fn whatever_else_happens_is_found() {
        assert!(judged(&[flush(), activations(2), flush()]).is_err(), "before none is left");
        assert!(judged(&[flush(), activations(4)]).is_err(), "an ASID that isn't there");
        assert!(judged(&[vec![Did::Flushed(0), Did::Done(DF_FLUSH)]]).is_err(), "a CPU left out");
        assert!(judged(&[flush(), activations(3), vec![Did::Flushed(0)], activations(1)]).is_err(), "no DF_FLUSH");
        assert!(judged(&[flush(), vec![Did::Failed(ACTIVATE)]]).is_err(), "a command failed");
    }

    #[test]
    fn lines_of_the_log_are_read() {
        assert_eq!(Did::read("WroteBack(CpuId(2), true)"), Some(Did::Flushed(2)));
        assert_eq!(Did::read("WroteBack(CpuId(2), false)"), None);
        assert_eq!(Did::read("Rung(10, 0)"), Some(Did::Done(DF_FLUSH)));
        assert_eq!(Did::read("Rung(132, 0)"), Some(Did::Done(DF_FLUSH)));
        assert_eq!(Did::read("Rung(33, 11)"), Some(Did::Failed(ACTIVATE)));
        assert_eq!(Did::read("Rang(33, VmId(1))"), None);
    }
}
