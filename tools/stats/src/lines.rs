//! The console's answer to who asks for a VM's statistics: lines of the system channel, as `caisson_proto::console` has them.

use caisson_proto::console::{CHANNEL_0, STATS, STATS_WORDS};
use caisson_proto::stats::PAGES;

/// Bytes of a page.
const PAGE: usize = caisson_proto::addr::PAGE_SIZE as usize;
/// Words of all pages.
const WORDS: usize = PAGES * PAGE / 8;

/// An answer that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The pages; what was never written is zeros.
    Pages(Box<[[u8; PAGE]]>),
    /// There is no such VM.
    NoSuchVm,
    /// Some of it was lost on the way: ask again.
    Torn,
}

/// Collects the lines of one answer.
#[derive(Debug)]
pub struct Collector {
    channel: u8,
    lines: u64,
    words: Vec<u64>,
}

impl Collector {
    /// For the VM with this channel, 1 for the first.
    pub fn new(channel: u8) -> Self {
        Self { channel, lines: 0, words: vec![0; WORDS] }
    }

    /// The bytes that ask for it, on the system channel.
    pub fn request(&self) -> [u8; 2] {
        [STATS, CHANNEL_0.wrapping_add(self.channel)]
    }

    /// Takes a line, without its end. What belongs to another answer or isn't a line of one is left alone.
    pub fn feed(&mut self, line: &[u8]) -> Option<Answer> {
        let mut rest = std::str::from_utf8(line.strip_prefix(&self.request())?).ok()?.strip_prefix(' ')?.split(' ');
        match rest.next()? {
            "none" => Some(Answer::NoSuchVm),
            "end" => {
                let said = rest.next().and_then(number);
                let whole = said == Some(self.lines) && rest.next().is_none();
                Some(if whole { self.pages() } else { Answer::Torn })
            }
            place => {
                // A line that doesn't count is missed at the end.
                let from = number(place).and_then(|from| usize::try_from(from).ok())?;
                let words = rest.map(number).collect::<Option<Vec<u64>>>()?;
                let places = self.words.get_mut(from..from.checked_add(words.len())?)?;
                if words.len() > STATS_WORDS {
                    return None;
                }
                places.copy_from_slice(&words);
                self.lines += 1;
                None
            }
        }
    }

    fn pages(&self) -> Answer {
        let page = |words: &[u64]| {
            let mut page = [0; PAGE];
            page.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
            page
        };
        Answer::Pages(self.words.chunks_exact(PAGE / 8).map(page).collect())
    }
}

/// Hexadecimal without leading zeros; nothing is 0.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && !text.starts_with('0');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 16).ok().filter(|_| digits) }
}
