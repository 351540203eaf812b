//! One test on one machine: what came of it.

use std::io::Read;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::channels::Demux;
use crate::failure::{Context, Failure};
use crate::image::Built;
use crate::qemu::Qemu;
use crate::verdict::Notices;

/// What a test writes to the debug exit: half of the status with which QEMU is to end.
const SKIPPED: u64 = 77 >> 1;
const ABORTED: u64 = 127 >> 1;
/// How long output may still come after QEMU's end.
const DRAIN: Duration = Duration::from_secs(1);
/// Bytes of output that are kept at the most.
const KEPT: usize = 1 << 20;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every check passed.
    Passed,
    /// Checks failed; the program's status.
    Failed(u64),
    /// It found that the machine lacks what it tests.
    Skipped,
    /// It gave up: an exception that it didn't expect, or a failed assertion.
    Aborted,
    /// It took too long.
    TimedOut,
    /// It ended in another way.
    Died(String),
}

impl End {
    fn of_status(status: u64) -> Self {
        match status {
            0 => Self::Passed,
            SKIPPED => Self::Skipped,
            ABORTED => Self::Aborted,
            status => Self::Failed(status),
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passed => "pass",
            Self::Failed(1) => "FAIL",
            Self::Failed(status) => return write!(f, "FAIL ({status})"),
            Self::Skipped => "skip",
            Self::Aborted => "ABORT",
            Self::TimedOut => "TIMEOUT",
            Self::Died(_) => "DIED",
        })
    }
}

/// What came of a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Seconds from QEMU's start.
    pub seconds: f64,
    /// What it printed.
    pub output: String,
}

impl Outcome {
    /// Lines of checks with this mark.
    fn marked<'a>(&'a self, mark: &'a str) -> impl Iterator<Item = &'a str> {
        self.output.lines().map(str::trim).filter(move |line| line.starts_with(mark))
    }

    /// How many checks passed and how many failed.
    pub fn counts(&self) -> (usize, usize) {
        (self.marked("PASS: ").count(), self.failures().len())
    }

    /// The checks that failed.
    pub fn failures(&self) -> Vec<&str> {
        self.marked("FAIL: ").collect()
    }

    /// How it ended and how many of its checks passed.
    pub fn words(&self) -> String {
        match self.counts() {
            (0, 0) => self.end.to_string(),
            (passed, failed) => format!("{} {passed}/{}", self.end, passed + failed),
        }
    }
}

/// Runs QEMU with these arguments until it ends, or for so many seconds; on Caisson if `built` is given.
pub fn run(folder: &Path, arguments: &[String], built: Option<&Built>, seconds: u64) -> Result<Outcome, Failure> {
    let mut qemu = Qemu::start(folder, arguments, built.is_some())?;
    for mut log in [qemu.log.take(), qemu.kernel_log.take()].into_iter().flatten() {
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }
    qemu.console.set_read_timeout(Some(Duration::from_millis(10))).context("console")?;
    let services = built.iter().flat_map(|built| &built.services);
    let (names, guests) = services.map(|service| (service.name.clone(), service.vm.map(|_| "test".to_owned()))).unzip();
    let (mut notices, mut demux) = (Notices::new(names, guests), Demux::default());
    let (mut output, mut ended) = (Vec::new(), None);
    let limit = Duration::from_secs(seconds);
    let mut buffer = [0; 4096];
    loop {
        let count = qemu.console.read(&mut buffer).unwrap_or(0);
        let mut keep =
            |bytes: &[u8]| output.extend_from_slice(&bytes[..bytes.len().min(KEPT - output.len().min(KEPT))]);
        match built {
            Some(_) => demux.feed(&buffer[..count], |channel, bytes| match channel {
                0 => drop(notices.feed(bytes)),
                _ => keep(bytes),
            }),
            None => keep(&buffer[..count]),
        }
        let now = Instant::now();
        if ended.is_none() {
            ended = qemu.ended().map(|status| (status, now));
        }
        let end = match ended {
            Some((status, since)) if count == 0 || now - since > DRAIN => {
                let errors = qemu.end();
                match built {
                    Some(_) => on_caisson(&notices, status, &errors),
                    None => bare(status, &errors),
                }
            }
            None if now - qemu.started > limit => End::TimedOut,
            _ => continue,
        };
        let output = String::from_utf8_lossy(&output).replace('\r', "");
        return Ok(Outcome { end, seconds: (now - qemu.started).as_secs_f64(), output });
    }
}

fn on_caisson(notices: &Notices, status: ExitStatus, errors: &str) -> End {
    match notices.test_ended {
        Some(status) => End::of_status(status),
        None => End::Died(notices.conclude(status, errors, None).text),
    }
}

fn bare(status: ExitStatus, errors: &str) -> End {
    // QEMU exits with (value << 1) | 1; with 1 also when it can't start, but then it says why. A machine that resets
    // itself ends with 0.
    match status.code() {
        Some(code) if code & 1 == 1 && (code != 1 || !errors.contains("qemu-system")) => {
            End::of_status(code as u64 >> 1)
        }
        Some(0) => End::Died("the machine reset or switched itself off".into()),
        _ => End::Died(format!("QEMU ended by itself ({status}): {}", errors.trim())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn checks_are_counted_by_their_marks() {
        let output = "PASS: a\nFAIL: b: c\nXFAIL: d\n  PASS: e\nSUMMARY: 4 tests, 1 unexpected failures\n".into();
        let outcome = Outcome { end: End::Failed(1), seconds: 0.0, output };
        assert_eq!((outcome.counts(), outcome.failures()), ((2, 1), vec!["FAIL: b: c"]));
        assert_eq!(outcome.words(), "FAIL 2/3");
    }

    #[test]
    fn qemus_status_says_how_it_ended() {
        let ended = |code: i32, errors: &str| bare(ExitStatus::from_raw(code << 8), errors);
        assert_eq!([1, 3, 77, 127].map(|code| ended(code, "")), [0, 1, 38, 63].map(End::of_status));
        assert_eq!([0, 1, 38, 63].map(|status| End::of_status(status).to_string()), ["pass", "FAIL", "skip", "ABORT"]);
        assert!(matches!(ended(1, "qemu-system-x86_64: no such file"), End::Died(_)));
        assert!(matches!(ended(0, ""), End::Died(_)));
        assert!(matches!(bare(ExitStatus::from_raw(6), ""), End::Died(_)));
    }
}
