//! The user's terminal: raw while a guest has it, restored however xtask ends; and the keys after Ctrl-A.

use std::sync::Mutex;

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::failure::{Context, Failure};

/// The terminal's own settings, while they aren't in force.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal raw while it lives.
pub struct Raw(());

impl Raw {
    /// Makes the terminal raw, if standard input is one.
    pub fn enter() -> Result<Option<Self>, Failure> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let saved = tcgetattr(stdin()).context("the terminal's settings")?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(saved);
        // A panic ends the process without unwinding.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("can't make the terminal raw")?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Ok(mut saved) = SAVED.lock()
        && let Some(saved) = saved.take()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &saved);
    }
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Leave.
    Leave,
    /// Show the next guest.
    Next,
    /// Say what the keys are.
    Help,
}

/// What Ctrl-A H says.
pub const HELP: &str = "Ctrl-A X: leave   Ctrl-A N: next guest   Ctrl-A Ctrl-A: send Ctrl-A   Ctrl-A H: this help";

const CTRL_A: u8 = 1;

/// Finds commands among the keys.
#[derive(Debug, Default)]
pub struct Keys {
    command: bool,
}

impl Keys {
    /// What `bytes` from the terminal mean.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        for &byte in bytes {
            let meant = match (std::mem::take(&mut self.command), byte) {
                (false, CTRL_A) => {
                    self.command = true;
                    continue;
                }
                (true, b'x' | b'X') => Typed::Leave,
                (true, b'n' | b'N') => Typed::Next,
                (true, b'h' | b'H' | b'?') => Typed::Help,
                (true, byte) if byte != CTRL_A => continue,
                (_, byte) => {
                    if let Some(Typed::Bytes(run)) = typed.last_mut() {
                        run.push(byte);
                        continue;
                    }
                    Typed::Bytes(vec![byte])
                }
            };
            typed.push(meant);
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_keys_even_when_cut() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"ab\x01"), [Typed::Bytes(b"ab".to_vec())]);
        assert_eq!(keys.feed(b"xc\x01\x01d"), [Typed::Leave, Typed::Bytes(b"c\x01d".to_vec())]);
        assert_eq!(keys.feed(b"\x01n\x01H\x01q"), [Typed::Next, Typed::Help]);
    }
}
