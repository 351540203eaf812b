//! Statistics: blocks with anything in them, and the lines in which the console sends them.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::stats::{PAGES, VCPU, block, id};
use caisson_qemu_console::report::Report;
use caisson_stats::lines::{Answer, Collector};
use caisson_stats::{judge, read};
use zerocopy::IntoBytes;

use crate::edit::{Edit, edit};

/// Words of all pages of a VM.
const WORDS: usize = PAGES * 512;

#[derive(Debug, Arbitrary)]
struct Input {
    edits: Vec<Edit>,
    words: Vec<(u16, u64)>,
    channel: u8,
    lost: Option<u16>,
    noise: Vec<u8>,
}

/// Whatever is in a block, it is read or refused; what the console sends arrives as it was, or it is noticed that it didn't.
pub fn stats(data: &[u8]) {
    let Ok(input) = Unstructured::new(data).arbitrary::<Input>() else { return };
    let mut bytes = block(VCPU, &id("fuzz", Some(input.channel))).as_bytes().to_vec();
    edit(&mut bytes, &input.edits);
    let judged = judge(&bytes);
    if let Ok(block) = read(&bytes) {
        assert!(block.bytes <= bytes.len());
        assert!(block.stats.iter().all(|stat| !stat.values.is_empty()));
        // What the block doesn't reach is nothing to it.
        assert_eq!(read(&bytes[..block.bytes]).as_ref(), Ok(&block));
    }
    assert!(!bytes.is_empty() || judged.is_err());
    lines(&input);
}

fn lines(input: &Input) {
    let mut words = vec![0; WORDS];
    for (at, word) in &input.words {
        words[usize::from(*at) % WORDS] = *word;
    }
    let channel = input.channel % 9 + 1;
    let mut report = Report::new(channel.into(), Some(WORDS));
    let all: Vec<_> = std::iter::from_fn(|| report.next(|at| words[at])).collect();
    let mut collector = Collector::new(channel);
    let mut answer = None;
    let lost = input.lost.map(|lost| usize::from(lost) % all.len()).filter(|lost| lost + 1 < all.len());
    for (at, line) in all.iter().enumerate().filter(|(at, _)| Some(*at) != lost) {
        // Lines of others come between, but none that is taken for this answer's.
        let noise = [&b"n"[..], &input.noise].concat();
        assert_eq!(collector.feed(&noise), None);
        answer = collector.feed(&line[..line.len() - 1]);
        assert_eq!(answer.is_some(), at + 1 == all.len());
    }
    match answer {
        Some(Answer::Pages(pages)) => {
            assert!(lost.is_none());
            assert_eq!(pages.as_flattened(), words.as_bytes());
        }
        other => assert!(lost.is_some() && other == Some(Answer::Torn), "{other:?}"),
    }
    // Anything at all.
    collector.feed(&input.noise);
}
