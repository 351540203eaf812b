//! The answer to whoever reads a VM's statistics: its pages, word by word, in lines on the system channel.
//!
//! The lines are those of `caisson_proto::console`. Nothing is kept of the pages: each line is what they have at that moment,
//! as there is room for it. What the words mean is the business of both ends.

use caisson_proto::console::{CHANNEL_0, MAX_CHANNELS, STATS, STATS_WORDS};

/// Characters of a line at the most: request, place, words of 16 digits, the end.
pub const LINE: usize = 2 + 9 + STATS_WORDS * 17 + 1;

/// A line.
pub type Line = heapless::Vec<u8, LINE>;

/// Finds requests on the system channel: `s` and a VM's digit.
#[derive(Debug, Default)]
pub struct Requests {
    begun: bool,
    /// Bit n: the n-th VM's were asked for.
    wanted: u16,
}

impl Requests {
    /// Nothing was asked.
    pub const fn new() -> Self {
        Self { begun: false, wanted: 0 }
    }

    /// A byte of the channel. False if it belongs to no request.
    pub fn feed(&mut self, byte: u8) -> bool {
        if !core::mem::replace(&mut self.begun, byte == STATS) {
            return self.begun;
        }
        let vm = usize::from(byte.wrapping_sub(CHANNEL_0));
        if (1..MAX_CHANNELS).contains(&vm) {
            self.wanted |= 1 << vm;
            return true;
        }
        self.begun
    }

    /// The next VM that was asked for, by its channel.
    pub fn take(&mut self) -> Option<usize> {
        let vm = self.wanted.trailing_zeros() as usize;
        if vm >= MAX_CHANNELS {
            return None;
        }
        self.wanted &= self.wanted - 1;
        Some(vm)
    }
}

/// An answer on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    channel: usize,
    /// The next word; words in all.
    at: usize,
    words: usize,
    lines: u64,
    ended: bool,
}

impl Report {
    /// Of the VM with this channel, which has so many words; `None`: there is no such VM.
    pub const fn new(channel: usize, words: Option<usize>) -> Self {
        let words = match words {
            Some(words) => words,
            None => 0,
        };
        Self { channel, at: 0, words, lines: 0, ended: false }
    }

    /// The next line, if there is one more. `load` reads a word.
    pub fn next(&mut self, load: impl Fn(usize) -> u64) -> Option<Line> {
        if core::mem::replace(&mut self.ended, self.at >= self.words) {
            return None;
        }
        let mut line = Line::new();
        let _ = line.extend_from_slice(&[STATS, CHANNEL_0 + self.channel as u8]);
        while self.at < self.words {
            let from = self.at;
            self.at += STATS_WORDS;
            let words: [u64; STATS_WORDS] =
                core::array::from_fn(|n| if from + n < self.words { load(from + n) } else { 0 });
            // Zeros at the end of a line needn't be said, nor a line of nothing else.
            let Some(last) = words.iter().rposition(|word| *word != 0) else { continue };
            hex(&mut line, from as u64);
            words.iter().take(last + 1).for_each(|word| hex(&mut line, *word));
            self.lines += 1;
            self.ended = false;
            let _ = line.push(b'\n');
            return Some(line);
        }
        self.ended = true;
        let _ = line.extend_from_slice(if self.words == 0 { b" none" } else { b" end" });
        if self.words != 0 {
            hex(&mut line, self.lines);
        }
        let _ = line.push(b'\n');
        Some(line)
    }
}

/// A space and a number; 0 is a space alone. There is room for as many as a line has.
fn hex(line: &mut Line, number: u64) {
    let _ = line.push(b' ');
    let digits = u64::BITS.div_ceil(4) - number.leading_zeros() / 4;
    for digit in (0..digits).rev() {
        let _ = line.push(crate::hex((number >> (4 * digit) & 15) as u8));
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    fn lines(words: &[u64]) -> Vec<String> {
        let mut report = Report::new(3, Some(words.len()));
        let next = || report.next(|at| words[at]).map(|line| String::from_utf8(line.to_vec()).unwrap());
        core::iter::from_fn(next).collect()
    }

    #[test]
    fn pages_are_told_without_their_zeros() {
        assert_eq!(lines(&[0x1f, 0, u64::MAX, 0]), ["s3  1f  ffffffffffffffff\n", "s3 end 1\n"]);
        let mut words = [0; 50];
        assert_eq!(lines(&words), ["s3 end \n"]);
        (words[33], words[49]) = (1, 2);
        assert_eq!(lines(&words), ["s3 20  1\n", "s3 30  2\n", "s3 end 2\n"]);
        assert!(lines(&[u64::MAX; STATS_WORDS * 5]).iter().all(|line| line.len() <= LINE));
        assert_eq!(lines(&[u64::MAX; STATS_WORDS * 5]).len(), 6);
    }

    #[test]
    fn a_vm_that_is_not_there_has_none() {
        let mut report = Report::new(9, None);
        assert_eq!(report.next(|_| 1).as_deref(), Some(&b"s9 none\n"[..]));
        assert_eq!(report.next(|_| 1), None);
    }

    #[test]
    fn requests_are_found_between_other_bytes() {
        let mut requests = Requests::new();
        let heard: Vec<bool> = b"xs1s0ss9s:".iter().map(|byte| requests.feed(*byte)).collect();
        assert_eq!(heard, [false, true, true, true, false, true, true, true, true, false]);
        assert_eq!([requests.take(), requests.take(), requests.take()], [Some(1), Some(9), None]);
    }
}
