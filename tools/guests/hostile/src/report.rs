//! What is counted and printed: a line for each class of attempts, the same for the same seed.

use core::sync::atomic::{AtomicBool, Ordering};

use caisson_guest_rt::println;

use crate::attempt::Frame;

/// Every attempt is printed.
pub static SHOWN: AtomicBool = AtomicBool::new(false);

/// Attempts of one class.
#[derive(Clone, Debug)]
pub struct Tally {
    attempts: u64,
    vectors: [u32; 33],
    digest: u64,
}

impl Tally {
    /// None yet.
    pub const fn new() -> Self {
        Self { attempts: 0, vectors: [0; 33], digest: 0xcbf2_9ce4_8422_2325 }
    }

    /// Mixes a number into the digest.
    pub fn mix(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// `count` attempts that all succeeded.
    pub fn add(&mut self, count: u64) {
        self.attempts += count;
        self.vectors[3] += count as u32;
    }

    /// An attempt and how it ended; what it left in registers doesn't count.
    pub fn take(&mut self, after: &Frame) {
        self.attempts += 1;
        self.vectors[(after.vector as usize).min(32)] += 1;
        self.mix(after.vector);
        self.mix(after.error);
    }

    /// Prints it as the line of a class.
    pub fn tell(&self, class: &str, mode: &str) {
        let line = self.counts();
        println!("hostile {class} {mode}: {} digest {:016x}", line.text(), self.digest);
    }

    /// Prints the counts of what other lines tell in full.
    pub fn total(&self, class: &str, mode: &str) {
        println!("hostile total {class} {mode}: {}", self.counts().text());
    }

    /// How many attempts there were and how they ended.
    pub fn counts(&self) -> Line {
        use core::fmt::Write;
        let mut line = Line::new();
        let _ = write!(line, "{} attempts:", self.attempts);
        for (vector, count) in self.vectors.iter().enumerate().filter(|(_, count)| **count != 0) {
            let _ = match vector {
                3 => write!(line, " {count} done"),
                32 => write!(line, " {count} interrupts"),
                _ => write!(line, " {count} {}", name(vector)),
            };
        }
        line
    }
}

/// The exception's usual name.
pub fn name(vector: usize) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS", "#GP", "#PF", "#15",
        "#MF", "#AC", "#MC", "#XF", "#20", "#CP",
    ];
    NAMES.get(vector).copied().unwrap_or("#other")
}

/// A line of text in memory of its own.
pub struct Line {
    bytes: [u8; 1024],
    used: usize,
}

impl Line {
    /// Empty.
    pub const fn new() -> Self {
        Self { bytes: [0; 1024], used: 0 }
    }

    /// What was written.
    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.used]).unwrap_or("?")
    }
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let end = (self.used + text.len()).min(self.bytes.len());
        self.bytes[self.used..end].copy_from_slice(&text.as_bytes()[..end - self.used]);
        self.used = end;
        Ok(())
    }
}

/// Words of which equal ones in a row are counted: `6@0*12 +2`.
pub struct Runs {
    line: Line,
    last: Line,
    count: u32,
}

impl Runs {
    /// None yet.
    pub const fn new() -> Self {
        Self { line: Line::new(), last: Line::new(), count: 0 }
    }

    /// The next word.
    pub fn push(&mut self, word: impl core::fmt::Display) {
        use core::fmt::Write;
        let mut text = Line::new();
        let _ = write!(text, "{word}");
        if self.count != 0 && text.text() == self.last.text() {
            self.count += 1;
            return;
        }
        self.flush();
        self.last = text;
        self.count = 1;
    }

    fn flush(&mut self) {
        use core::fmt::Write;
        let _ = match self.count {
            0 => Ok(()),
            1 => write!(self.line, " {}", self.last.text()),
            count => write!(self.line, " {}*{count}", self.last.text()),
        };
        self.count = 0;
    }

    /// All words.
    pub fn text(mut self) -> Line {
        self.flush();
        self.line
    }

    /// Prints them as the line of a class.
    pub fn tell(mut self, class: &str, mode: &str) {
        self.flush();
        println!("hostile {class} {mode}:{}", self.line.text());
    }
}

/// Prints an attempt, if that is wanted.
pub fn show(what: core::fmt::Arguments<'_>) {
    if SHOWN.load(Ordering::Relaxed) {
        println!("  {what}");
    }
}
