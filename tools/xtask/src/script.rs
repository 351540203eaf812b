//! Types a script at a guest's prompt: one line whenever the previous command has ended, then the power-off.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::initramfs::PROMPT;

/// How long the console must be quiet after what looks like a prompt.
const QUIET: Duration = Duration::from_millis(30);
/// The same for a prompt that isn't our initramfs's: output could look like it by chance.
const QUIET_STRANGER: Duration = Duration::from_millis(300);
/// Longest line that is taken for a prompt.
const LONGEST: usize = 100;
/// Typed when the script is through.
const POWER_OFF: &str = "poweroff -f";

/// The lines of a script's text that are typed.
pub fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(String::from).collect()
}

/// Finds the prompt in what a guest writes.
#[derive(Debug)]
pub struct Prompt {
    line: Vec<u8>,
    escape: Escape,
    last: Instant,
    /// A message of the kernel's was written behind a prompt.
    overwritten: bool,
}

/// Where in a terminal's control sequence the output is (ECMA-48, 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Control,
}

impl Prompt {
    /// Nothing was written so far.
    pub fn new(now: Instant) -> Self {
        Self { line: Vec::new(), escape: Escape::None, last: now, overwritten: false }
    }

    /// The guest wrote `bytes`.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        self.last = now;
        for &byte in bytes {
            match (self.escape, byte) {
                (Escape::None, 0x1b) => self.escape = Escape::Begun,
                (Escape::Begun, b'[') => self.escape = Escape::Control,
                (Escape::Begun, _) | (Escape::Control, 0x40..=0x7e) => self.escape = Escape::None,
                (Escape::Control, _) => {}
                (Escape::None, b'\n') => {
                    self.overwritten = overwritten(&self.line);
                    self.line.clear();
                }
                (Escape::None, b'\r') => {}
                (Escape::None, _) => self.line.push(byte),
            }
        }
    }

    /// Whether the guest waits at its prompt.
    pub fn waits(&self, now: Instant) -> bool {
        let text = String::from_utf8_lossy(&self.line);
        let ours = text.starts_with(PROMPT) && text.ends_with("# ");
        let prompt = text.len() <= LONGEST && (text.ends_with("# ") || text.ends_with("$ "));
        let quiet = now.saturating_duration_since(self.last);
        let ours = ours || (self.overwritten && text.is_empty());
        (ours && quiet >= QUIET) || (prompt && quiet >= QUIET_STRANGER)
    }

    /// Something was typed at the prompt: wait for the next.
    pub fn typed(&mut self) {
        self.line.clear();
        self.overwritten = false;
    }
}

/// Our prompt, then a message of the kernel's.
fn overwritten(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    text.strip_prefix(PROMPT)
        .and_then(|rest| rest.split_once("# "))
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('[') && rest.contains("] "))
}

/// A script on its way.
#[derive(Debug)]
pub struct Script {
    prompt: Prompt,
    lines: VecDeque<String>,
    ended: bool,
}

impl Script {
    /// Will type these lines.
    pub fn new(lines: &[String], now: Instant) -> Self {
        Self { prompt: Prompt::new(now), lines: lines.iter().cloned().collect(), ended: false }
    }

    /// The guest wrote `bytes`.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        self.prompt.feed(bytes, now);
    }

    /// What to type now, with its end of line.
    pub fn next(&mut self, now: Instant) -> Option<String> {
        if self.ended || !self.prompt.waits(now) {
            return None;
        }
        self.prompt.typed();
        let line = self.lines.pop_front().unwrap_or_else(|| {
            self.ended = true;
            POWER_OFF.into()
        });
        Some(line + "\n")
    }

    /// How many lines of the script weren't typed.
    pub fn left(&self) -> usize {
        self.lines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(output: &[u8], wait: Duration) -> bool {
        let now = Instant::now();
        let mut prompt = Prompt::new(now);
        prompt.feed(output, now);
        prompt.waits(now + wait)
    }

    #[test]
    fn comments_and_blank_lines_are_left_out() {
        assert_eq!(lines("# a\n\nls  \n  \n cd /\n"), ["ls", " cd /"]);
    }

    #[test]
    fn our_prompt_is_known_after_a_short_silence() {
        assert!(after(b"boot\r\nguest:~# \x1b[6n", QUIET));
        assert!(!after(b"guest:~# ", QUIET / 2));
        assert!(!after(b"guest:~# ls", QUIET * 20));
        assert!(!after(b"guest:~# \r\n", QUIET * 20));
    }

    #[test]
    fn any_other_prompt_needs_a_longer_one() {
        assert!(after(b"/ # ", QUIET_STRANGER) && after(b"user@box:~$ ", QUIET_STRANGER));
        assert!(!after(b"/ # ", QUIET) && !after(b"# not a prompt", QUIET_STRANGER));
    }

    #[test]
    fn a_kernel_message_behind_the_prompt_does_not_hide_it() {
        assert!(after(b"guest:/# [    3.1234] random: crng init done\r\n", QUIET));
        assert!(!after(b"guest:/# echo [x] y\r\n", QUIET * 20));
    }

    #[test]
    fn lines_are_typed_one_by_one_and_then_the_power_off() {
        let mut now = Instant::now();
        let mut script = Script::new(&["a".into(), "b".into()], now);
        let mut typed = Vec::new();
        for output in [&b"guest:~# "[..], b"a\r\nout\r\n", b"guest:~# ", b"b\r\nguest:~# ", b"poweroff -f\r\nguest:~# "]
        {
            script.feed(output, now);
            now += QUIET;
            typed.extend(script.next(now));
            assert_eq!(script.next(now), None);
        }
        assert_eq!(typed, ["a\n", "b\n", "poweroff -f\n"]);
        assert_eq!(script.left(), 0);
    }
}
