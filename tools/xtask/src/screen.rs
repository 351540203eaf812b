//! What of the guests' consoles is on standard output: the current guest's on a terminal, else all of them with
//! their names before each line.

use std::io::Write;

use crate::failure::{Context, Failure};

/// Recent output that is kept of each guest, in bytes.
const KEPT: usize = 64 << 10;
/// Clears the terminal and moves to its first line.
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";
/// A shell asks the terminal where the cursor is, or clears to its end; means nothing in a file.
const QUERIES: [&[u8]; 2] = [b"\x1b[6n", b"\x1b[J"];

/// Standard output and who has it.
#[derive(Debug)]
pub struct Screen {
    names: Vec<String>,
    recent: Vec<Vec<u8>>,
    current: usize,
    plain: bool,
    /// Of plain output: what is held back, because it isn't a whole line or may be the beginning of a query.
    held: Vec<Vec<u8>>,
}

impl Screen {
    /// For guests of these names; `plain` if standard output isn't for a person at a terminal.
    pub fn new(names: Vec<String>, plain: bool) -> Self {
        let (recent, held) = (vec![Vec::new(); names.len()], vec![Vec::new(); names.len()]);
        Self { names, recent, current: 0, plain, held }
    }

    /// The guest that has the keyboard.
    pub fn current(&self) -> usize {
        self.current
    }

    /// A guest wrote `bytes`.
    pub fn show(&mut self, guest: usize, bytes: &[u8]) -> Result<(), Failure> {
        if guest >= self.names.len() {
            return Ok(());
        }
        let out = if self.plain {
            self.plain(guest, bytes, false)
        } else {
            let recent = &mut self.recent[guest];
            recent.extend_from_slice(bytes);
            let excess = recent.len().saturating_sub(KEPT);
            recent.drain(..excess);
            if guest == self.current { bytes.to_vec() } else { Vec::new() }
        };
        write(&out)
    }

    /// Shows the next guest; returns what to say about it.
    pub fn next(&mut self) -> Option<String> {
        if self.names.len() < 2 {
            return Some("there is one guest only".into());
        }
        self.current = (self.current + 1) % self.names.len();
        // The terminal answered these when they were new.
        let mut recent = Vec::new();
        let mut rest = self.recent[self.current].as_slice();
        while let Some((&byte, after)) = rest.split_first() {
            match QUERIES.iter().find(|query| rest.starts_with(query)) {
                Some(query) => rest = &rest[query.len()..],
                None => {
                    recent.push(byte);
                    rest = after;
                }
            }
        }
        let _ = write(&[CLEAR, &recent].concat());
        None
    }

    /// Writes what is held back.
    pub fn finish(&mut self) -> Result<(), Failure> {
        let mut out = Vec::new();
        for guest in 0..self.names.len() {
            out.extend(self.plain(guest, b"", true));
        }
        write(&out)
    }

    /// Output without what only a terminal understands, with names if there are several guests.
    fn plain(&mut self, guest: usize, bytes: &[u8], last: bool) -> Vec<u8> {
        let named = self.names.len() > 1;
        let held = &mut self.held[guest];
        held.extend_from_slice(bytes);
        let mut out = Vec::new();
        let mut rest = held.as_slice();
        let mut line = Vec::new();
        while let Some((&byte, after)) = rest.split_first() {
            if let Some(query) = QUERIES.iter().find(|query| rest.starts_with(query)) {
                rest = &rest[query.len()..];
                continue;
            }
            if !last && (QUERIES.iter().any(|query| query.starts_with(rest)) || rest == b"\r") {
                break;
            }
            rest = after;
            if byte == b'\r' && rest.first() == Some(&b'\n') {
                continue;
            }
            line.push(byte);
            if named && byte == b'\n' {
                out.extend([self.names[guest].as_bytes(), b"| ", &line].concat());
                line.clear();
            }
        }
        if named && last && !line.is_empty() {
            out.extend([self.names[guest].as_bytes(), b"| ", &line, b"\n"].concat());
        } else if !named {
            out.extend(&line);
            line.clear();
        }
        let keep = if last { Vec::new() } else { [line.as_slice(), rest].concat() };
        *held = keep;
        out
    }
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read it has enough; the run goes on.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("can't write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(names: &[&str]) -> Screen {
        Screen::new(names.iter().map(|name| name.to_string()).collect(), true)
    }

    #[test]
    fn one_guests_output_is_plain_text_at_once() {
        let mut one = screen(&["a"]);
        assert_eq!(one.plain(0, b"x\r\ny# \x1b[6", false), b"x\ny# ");
        assert_eq!(one.plain(0, b"nz\r", false), b"z");
        assert_eq!(one.plain(0, b"", true), b"\r");
    }

    #[test]
    fn several_guests_lines_carry_their_names() {
        let mut two = screen(&["a", "b"]);
        assert_eq!(two.plain(0, b"x\r\nhal", false), b"a| x\n");
        assert_eq!(two.plain(1, b"\x1b[Jy\n", false), b"b| y\n");
        assert_eq!(two.plain(0, b"f\n", false), b"a| half\n");
        assert_eq!(two.plain(1, b"end", false), b"");
        assert_eq!(two.plain(1, b"", true), b"b| end\n");
    }
}
