//! A hostile service is let loose in QEMU beside a Linux guest: each attempt must end as the table says, in the
//! kernel's own words and with the culprit's name, and nobody else may notice.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use caisson_guest_intruder::attempts::{Attempt, Expect, attempts};
use caisson_guest_intruder::order;
use caisson_proto::abi::Status as Answer;

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::Status;
use crate::logs::Line;
use crate::paths::Paths;

/// The guest.
const GUEST: (&str, &str) = ("guest", "vcpus = 2\nmemory = \"256M\"\n");
/// Whom it can reach, and who must have named it in the log.
const REACHED: [&str; 6] = ["kernel", "console", "memory", "notifier", "sev-firmware", "vmm-guest"];
/// What console says of who fills its log ring faster than it is read.
const FLOODED: &str = "console: intruder dropped ";
/// How long all attempts may take.
const LONGEST: Duration = Duration::from_secs(150);
/// How often the guest's shell must have answered while it was attacked.
const ANSWERS: u64 = 5;

/// What the agent said of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    life: u64,
    status: u64,
    cases: u64,
    wrong: u64,
    got: u64,
    own: bool,
}

/// The whole step: a check for each attempt, and one for each promise about the others.
pub fn run(paths: &Paths) -> Outcome {
    match attack(paths) {
        Ok(outcome) => outcome,
        Err(why) => Outcome::failed(why),
    }
}

fn attack(paths: &Paths) -> Result<Outcome, String> {
    // Here the intruder writes the reclaim notices. memory, without that ring, calls notifier.
    let notices = ("from = [\"memory\"]\nto = \"notifier\"", "from = [\"intruder\"]\nto = \"notifier\"");
    let mut machine = Witness::boot(paths, Some(notices), &[GUEST]).map_err(|failure| failure.text)?;
    machine.is_up()?;
    machine.orders(order::GO)?;
    let (start, mut answers) = (Instant::now(), 0);
    while !machine.logged("agent", "agent: over") {
        answers += 1;
        let (line, answer) = (format!("echo alive=$(({answers}*7))"), format!("alive={}\r", answers * 7));
        machine.asks(0, &line, &answer, SOON)?;
        if machine.logged("agent", "agent: the intruder isn't back") {
            return Err(machine.told("the intruder wasn't started again"));
        }
        if start.elapsed() > LONGEST {
            return Err(machine.told("the attempts don't come to an end"));
        }
    }
    machine.types(0, "poweroff -f");
    let end = machine.ends(BOOT)?;
    let mut outcome = Outcome::default();
    let mut promise = |kept: bool, what: String| match kept {
        true => outcome.passed += 1,
        false => outcome.failed.push(what),
    };
    promise(answers >= ANSWERS, format!("the guest answered {answers} times only"));
    let by_intruder = end.status == Status::Faulted && end.text.contains("service \"intruder\" faulted");
    promise(by_intruder, format!("it ended with {:?}: {}", end.status, end.text));
    let deaths = deaths(&machine.lines);
    let said: HashMap<usize, Said> = machine.lines.iter().filter_map(said).collect();
    for (number, attempt) in attempts().enumerate() {
        let judged = match said.get(&number) {
            Some(said) => judge(&attempt, said, &deaths),
            None => Err("nothing was said of it".into()),
        };
        promise(judged.is_ok(), format!("attempt {number} ({attempt}): {}", judged.err().unwrap_or_default()));
    }
    for who in REACHED {
        let named = |line: &Line| line.who == who && names_culprit(&line.what);
        promise(machine.lines.iter().any(named), format!("{who} didn't name the intruder"));
    }
    let flooded = machine.lines.iter().any(|line| line.who == "console" && line.what.starts_with(FLOODED));
    promise(flooded, "console didn't name who flooded the log".into());
    let whom = "refused accomplice: ";
    let named = machine.lines.iter().any(|line| line.who == "supervisor" && line.what.starts_with(whom));
    promise(named, "supervisor didn't name the accomplice".into());
    let ends = attempts().filter(|attempt| attempt.expect != Expect::Refused).count();
    let told = machine.lines.iter().filter(|line| line.who == "supervisor" && tells_of_end(&line.what)).count();
    promise(told == ends, format!("the supervisor told of {told} ends of the intruder and not of {ends}"));
    let others: Vec<_> = deaths.iter().filter(|((who, _), _)| who != "intruder" && who != "vmm-guest").collect();
    let accomplice = others.iter().all(|((who, _), _)| who == "accomplice");
    promise(accomplice && others.len() == 2, format!("others ended: {others:?}"));
    let account = machine.account();
    let adds_up = account.is_some_and(|(before, after, leaked)| before == after && leaked == 0);
    promise(adds_up, format!("frames free before and after, and leaked: {account:?}"));
    if !outcome.failed.is_empty() {
        machine.told("not everything was as it should be");
    }
    Ok(outcome)
}

fn names_culprit(what: &str) -> bool {
    what.starts_with("refused intruder: ") || what.starts_with("Refused(intruder, life ")
}

fn tells_of_end(what: &str) -> bool {
    ["intruder faulted: ", "intruder ended itself: ", "intruder was killed"].iter().any(|how| what.starts_with(how))
}

/// What the agent said of which attempt, if this line says so.
fn said(line: &Line) -> Option<(usize, Said)> {
    if line.who != "agent" {
        return None;
    }
    let words: Vec<&str> = line.what.split_whitespace().collect();
    let ["attempt", number, "life", life, "status", status, "cases", cases, "wrong", wrong, "got", got, "own", own] =
        words[..]
    else {
        return None;
    };
    let parse = |word: &str| word.parse().ok();
    let said = Said {
        life: parse(life)?,
        status: parse(status)?,
        cases: parse(cases)?,
        wrong: parse(wrong)?,
        got: parse(got)?,
        own: own == "true",
    };
    Some((number.parse().ok()?, said))
}

/// How each life of each service ended, in the kernel's words.
fn deaths(lines: &[Line]) -> HashMap<(String, u64), String> {
    let mut deaths = HashMap::new();
    for line in lines.iter().filter(|line| line.who == "kernel") {
        let rest = ["Faulted { service: ", "Exited(", "Killed("].iter().find_map(|how| line.what.strip_prefix(how));
        let Some((who, rest)) = rest.and_then(|rest| rest.split_once(", life ")) else { continue };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if let Ok(life) = digits.parse() {
            deaths.insert((who.to_owned(), life), line.what.clone());
        }
    }
    deaths
}

/// What is wrong with how an attempt ended.
fn judge(attempt: &Attempt, said: &Said, deaths: &HashMap<(String, u64), String>) -> Result<(), String> {
    let Said { life, status, cases, wrong, got, own } = *said;
    let death = deaths.get(&("intruder".to_owned(), life));
    let Some(wanted) = how(attempt.expect, death.map_or("", String::as_str)) else {
        return match (status, wrong, own) {
            (0, 0, true) if cases > 0 => Ok(()),
            _ => Err(format!("case {wrong} of {cases} was wrong: {got:#x} (status {status}, {death:?})")),
        };
    };
    if status != Answer::Died as u64 {
        return Err(format!("it went on: status {status}, {got:#x}"));
    }
    if wanted { Ok(()) } else { Err(format!("it ended otherwise: {death:?}")) }
}

/// Whether these words of the kernel's tell of the end that is expected; none if no end is.
fn how(expect: Expect, death: &str) -> Option<bool> {
    let faulted = |kind: &str| death.starts_with("Faulted") && death.contains(&format!("kind: {kind},"));
    Some(match expect {
        Expect::Refused => return None,
        Expect::Exception(vectors) => {
            let code = death.split("code: 0x").nth(1).and_then(|rest| rest.split([',', ' ']).next());
            let code = code.and_then(|code| u64::from_str_radix(code, 16).ok());
            faulted("Exception") && code.is_some_and(|code| vectors.contains(&((code >> 32) as u8)))
        }
        Expect::Protocol => faulted("Protocol"),
        Expect::Overrun => faulted("Overrun"),
        Expect::Exited(kind) => death.starts_with("Exited") && death.ends_with(&format!(", {kind})")),
        Expect::Killed => death.starts_with("Killed"),
    })
}
