//! switch: batches and requests of any vmm, in any life.

use std::collections::HashMap;

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::abi::{MAX_SERVICES, Status};
use caisson_proto::addr::ServiceId;
use caisson_proto::switch::{AREA, Fetch, Fetched, HEADER, PortRecord, Send, begin, split};
use caisson_proto::wire::{Reply, Request};
use caisson_switch::{Bells, FRAMES, Lent, Switch};
use zerocopy::IntoBytes;

/// Slots with a port are 2 to 7; those of even number are in network 1, the others in 2.
const SLOTS: std::ops::Range<u16> = 2..8;

struct Pages(Vec<u8>, bool);

impl Lent for Pages {
    fn bytes(&self) -> usize {
        self.0.len()
    }
    fn is_writable(&self) -> bool {
        self.1
    }
    fn read(&self, at: usize, into: &mut [u8]) -> bool {
        self.0.get(at..at + into.len()).map(|from| into.copy_from_slice(from)).is_some()
    }
    fn write(&mut self, at: usize, from: &[u8]) -> bool {
        assert!(self.1, "a write to pages that can't be written");
        self.0.get_mut(at..at + from.len()).map(|into| into.copy_from_slice(from)).is_some()
    }
}

struct Rung;

impl Bells for Rung {
    fn ring(&mut self, slot: u16) {
        assert!(SLOTS.contains(&slot), "a bell of somebody without a port");
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// Frames: to whom, from whom (0: the truth), and how many bytes more than a header.
    Frames(u8, Vec<(u8, u8, u16)>),
    Batch(u8, Vec<u8>, u16),
    Fetch(u8, bool, u8),
    Words(u8, [u64; 8], bool),
    Restart,
    /// Bit n: slot n dies, and lives again.
    Dies(u8),
}

fn network(slot: u16) -> u8 {
    1 + (slot % 2) as u8
}

/// switch: nobody gets what isn't of its network, from its sender's address and whole.
pub fn switch(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut records = [PortRecord::default(); MAX_SERVICES];
    for slot in SLOTS {
        records[usize::from(slot)] = PortRecord { network: network(slot), spare: 0, mac: [2, 0, 0, 0, 0, slot as u8] };
    }
    let mut switch = Box::new(Switch::new());
    assert_eq!(switch.configure(records.as_bytes()), 0);
    let mut bells = Rung;
    let mut lives = [0; 16];
    let mut last = [None; 16];
    let (mut number, mut sent) = (0_u64, HashMap::new());
    for _ in 0..100 {
        let Ok(step) = input.arbitrary::<Step>() else { break };
        let caller = |slot: u8, lives: &[u16; 16]| ServiceId::new((slot % 16).into(), lives[usize::from(slot % 16)]);
        match step {
            Step::Frames(slot, frames) => {
                let (mut batch, mut end, from) = (vec![0; AREA], 0, slot % 16);
                for (to, source, more) in frames {
                    let Some((frame, next)) = begin(&mut batch, end, HEADER + 8 + usize::from(more) % 1400) else {
                        break;
                    };
                    let to = if to == 0 { [0xff; 6] } else { [2, 0, 0, 0, 0, to % 10] };
                    frame[..6].copy_from_slice(&to);
                    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, if source == 0 { from } else { source }]);
                    // By this it is known again.
                    frame[HEADER..HEADER + 8].copy_from_slice(&number.to_le_bytes());
                    sent.insert(number, frame.to_vec());
                    number += 1;
                    end = next;
                }
                let words = Send { bytes: end as u64 }.encode();
                let (status, _) =
                    switch.handle(caller(slot, &lives), &words, Some(&mut Pages(batch, false)), &mut bells);
                assert_eq!(status == Status::Ok, SLOTS.contains(&from.into()));
            }
            Step::Batch(slot, bytes, length) => {
                let words = Send { bytes: length.into() }.encode();
                switch.handle(caller(slot, &lives), &words, Some(&mut Pages(bytes, false)), &mut bells);
            }
            Step::Fetch(slot, writable, pages) => {
                let at = usize::from(slot % 16);
                let mut pages = Pages(vec![0; usize::from(pages % 6) * 4096], writable);
                let (status, words) =
                    switch.handle(caller(slot, &lives), &Fetch {}.encode(), Some(&mut pages), &mut bells);
                if status != Status::Ok {
                    assert!(!writable || pages.0.is_empty() || !SLOTS.contains(&(at as u16)));
                    continue;
                }
                let fetched = Fetched::decode(&words).expect("a reply");
                check(&pages.0[..fetched.bytes as usize], at as u16, &sent, &mut last[at]);
            }
            Step::Words(slot, words, lends) => {
                let mut pages = Pages(vec![0; 4096], false);
                switch.handle(caller(slot, &lives), &words, lends.then_some(&mut pages), &mut bells);
            }
            Step::Restart => {
                *switch = Switch::new();
                switch.configure(records.as_bytes());
                switch.call_in(&mut bells);
            }
            Step::Dies(slots) => {
                (0..8).filter(|slot| slots >> slot & 1 == 1).for_each(|slot| lives[slot] += 1);
            }
        }
        if input.is_empty() {
            break;
        }
    }
}

/// What a port was given: frames of its network, and those that were sent in order in their order.
fn check(batch: &[u8], slot: u16, sent: &HashMap<u64, Vec<u8>>, last: &mut Option<u64>) {
    let (mut rest, mut count) = (batch, 0);
    while let Some((frame, later)) = split(rest) {
        let source = u16::from(frame[11]);
        assert!(frame[6..11] == [2, 0, 0, 0, 0] && SLOTS.contains(&source), "from nobody");
        assert!(network(source) == network(slot) && source != slot, "of another network, or its own");
        let number =
            frame.get(HEADER..).and_then(|text| text.first_chunk::<8>()).map(|bytes| u64::from_le_bytes(*bytes));
        if let Some(number) = number.filter(|number| sent.get(number).is_some_and(|sent| sent == frame)) {
            assert!(last.is_none_or(|last| number > last), "out of order, or twice");
            *last = Some(number);
        }
        (rest, count) = (later, count + 1);
    }
    assert!(rest.is_empty() && count <= FRAMES);
}
