//! Says on standard error what is being done, with a spinner where a person watches.

use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::{Context, Failure, Status};

/// One thing that takes time.
pub struct Step {
    bar: ProgressBar,
    what: String,
    start: Instant,
}

impl Step {
    /// Says that `what` begins.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar.set_message(what.clone());
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { bar, what, start: Instant::now() }
    }

    /// Says that it is done, if it took long enough to be worth a line.
    pub fn done(self) {
        self.bar.finish_and_clear();
        let took = self.start.elapsed();
        if took > Duration::from_millis(500) {
            eprintln!("{} ({:.1} s)", self.what, took.as_secs_f32());
        }
    }
}

/// Runs a command whose output matters only if it fails.
pub fn quietly(what: &str, command: &mut Command, status: Status) -> Result<Vec<u8>, Failure> {
    let step = Step::begin(what);
    let output = command.stdin(Stdio::null()).output();
    step.bar.finish_and_clear();
    let output = output.context(format_args!("can't start {}", command.get_program().display()))?;
    if output.status.success() {
        step.done();
        return Ok(output.stdout);
    }
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    eprintln!("{}", text.trim_end());
    Err(Failure::new(status, format!("{what} failed ({})", output.status)))
}
