//! A hostile service in sev-firmware's place names in its commands what isn't there for it. Every one of them is kept from the
//! processor, the kernel names the culprit where it may not do such a thing at all, and a plain guest goes on.

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::Status;
use crate::image;
use crate::paths::Paths;

/// The guest that must not notice.
const WITNESS: (&str, &str) = ("a", "vcpus = 1\nmemory = \"256M\"\n");
/// Who takes whose place in the machine.
const PLACE: (&str, &str) =
    ("package = \"caisson-sev-firmware\"", "package = \"caisson-guest-intruder\"\nbin = \"caisson-impostor\"");
/// The parts of its attempts.
const PARTS: [&str; 2] = ["before", "launched"];
/// What kind of guest it is asked to launch, and how many attempts there are in each part at least.
const KINDS: [(&str, [usize; 2]); 2] = [("sev", [590, 100]), ("sev-snp", [590, 40])];
/// The commands that it may give: INIT, DF_FLUSH, LAUNCH_START, or SNP's.
const GIVEN: usize = 3;

/// The whole step.
pub fn run(paths: &Paths) -> Outcome {
    let mut outcome = Outcome::default();
    for (encryption, least) in KINDS {
        match attempts(paths, encryption, least) {
            Ok(checks) => outcome.passed += checks,
            Err(why) => outcome.failed.push(format!("{encryption}: {why}")),
        }
    }
    outcome
}

/// The cases of a part, from the line that tells of it, if none went wrong.
fn cases(line: &str, part: &str) -> Option<Result<usize, String>> {
    let rest = line.strip_prefix("impostor: ")?.strip_prefix(part)?.strip_prefix(": ")?;
    let well = rest.strip_suffix(" cases, 0 wrong, got 0x0").and_then(|count| count.parse().ok());
    Some(well.ok_or_else(|| rest.to_owned()))
}

fn attempts(paths: &Paths, encryption: &str, least: [usize; 2]) -> Result<usize, String> {
    let flat = image::guest(paths, "caisson-guest-flat").map_err(|failure| failure.text)?;
    let flat = format!("vcpus = 1\nmemory = \"64M\"\nkernel = {flat:?}\nencryption = {encryption:?}\n");
    let mut machine = Witness::boot(paths, Some(PLACE), &[WITNESS, ("flat", &flat)]).map_err(|failure| failure.text)?;
    machine.until("the end of the attempts", BOOT, |this| this.logged("sev-firmware", "impostor: over"))?;
    machine.until("the agent's line", BOOT, |this| this.logged("agent", "agent: ready"))?;
    machine.asks(0, "echo alive=$((3*3))", "alive=9\r", BOOT)?;
    machine.kill("vmm-flat")?;
    machine.until("the end of vmm-flat", SOON, |this| this.logged("kernel", "Killed(vmm-flat"))?;
    machine.types(0, "poweroff -f");
    let end = machine.ends(BOOT)?;
    if end.status != Status::Faulted || !end.text.contains("service \"vmm-flat\" was killed") {
        return Err(machine.told(&format!("it ended with {:?}: {}", end.status, end.text)));
    }
    let mut checks = 2;
    for (part, least) in PARTS.into_iter().zip(least) {
        let told = machine.lines.iter().find_map(|line| cases(&line.what, part));
        match told {
            Some(Ok(count)) if count >= least => checks += count,
            other => return Err(machine.told(&format!("{part}: {other:?}, and at least {least} are to be kept"))),
        }
    }
    let rang = machine.lines.iter().filter(|line| line.who == "kernel" && line.what.starts_with("Rang(")).count();
    if rang != GIVEN {
        return Err(machine.told(&format!("{rang} commands reached the processor, not {GIVEN}")));
    }
    if !machine.logged("kernel", "Refused(sev-firmware, life 0") {
        return Err(machine.told("the kernel didn't name the culprit"));
    }
    match machine.account() {
        // The context of the SNP guest that it began stays the processor's.
        Some((before, after, 0)) if before == after + u64::from(encryption == "sev-snp") => Ok(checks),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_without_a_wrong_case_count() {
        assert_eq!(cases("impostor: before: 12 cases, 0 wrong, got 0x0", "before"), Some(Ok(12)));
        assert!(cases("impostor: before: 12 cases, 3 wrong, got 0x5", "before").is_some_and(|told| told.is_err()));
        assert_eq!(cases("impostor: before: 12 cases, 0 wrong, got 0x0", "launched"), None);
    }
}
