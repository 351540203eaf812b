//! The switch between ports that keep to the rules, and some that don't.

use caisson_proto::abi::MAX_SERVICES;
use caisson_proto::switch::{Fetch, MAX_FRAME, Mac, PortReport, Report, Send};
use caisson_proto::wire::Request;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

/// Pages of a caller.
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

/// One without ports, which is large for a stack.
fn made() -> Box<Switch> {
    Box::new(Switch::new())
}

/// Who was rung.
#[derive(Default)]
struct Rung(Vec<u16>);

impl Bells for Rung {
    fn ring(&mut self, slot: u16) {
        self.0.push(slot);
    }
}

const fn mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0, number]
}
const EVERYBODY: Mac = [0xff; 6];

fn file(ports: &[(usize, u8, Mac)]) -> Vec<u8> {
    let mut records = [PortRecord::default(); MAX_SERVICES];
    ports.iter().for_each(|&(slot, network, mac)| records[slot] = PortRecord { network, spare: 0, mac });
    records.as_bytes().to_vec()
}

struct Wire {
    switch: Box<Switch>,
    bells: Rung,
}

fn frame(to: Mac, from: Mac, text: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[8, 0], text].concat()
}

fn batch(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| [&(frame.len() as u16).to_le_bytes()[..], frame].concat()).collect()
}

impl Wire {
    /// Slots 2 to 4 in network 1, slot 5 in network 2; all live.
    fn new() -> Self {
        let mut switch = made();
        let ports = [(2, 1, mac(2)), (3, 1, mac(3)), (4, 1, mac(4)), (5, 2, mac(2))];
        assert_eq!((switch.configure(&file(&ports)), switch.ports()), (0, 4));
        let mut wire = Self { switch, bells: Rung::default() };
        (2..=5).for_each(|slot| assert_eq!(wire.fetch(slot), Ok((vec![], false))));
        wire
    }

    fn call<R: Request>(
        &mut self, slot: u16, life: u16, request: &R, pages: Option<&mut Pages>,
    ) -> Result<R::Reply, Status> {
        match self.switch.handle(ServiceId::new(slot, life), &request.encode(), pages, &mut self.bells) {
            (Status::Ok, words) => Ok(R::Reply::decode(&words).unwrap()),
            (status, words) => {
                assert_eq!(words, [0; 8]);
                Err(status)
            }
        }
    }

    fn send(&mut self, slot: u16, frames: &[Vec<u8>]) -> Result<u64, Status> {
        let bytes = batch(frames);
        let request = Send { bytes: bytes.len() as u64 };
        self.call(slot, 0, &request, Some(&mut Pages(bytes, false))).map(|sent| sent.dropped)
    }

    fn fetch(&mut self, slot: u16) -> Result<(Vec<Vec<u8>>, bool), Status> {
        let mut pages = Pages(vec![0xee; AREA], true);
        let Fetched { bytes, more } = self.call(slot, 0, &Fetch {}, Some(&mut pages))?;
        let mut rest = &pages.0[..bytes as usize];
        let mut frames = Vec::new();
        while let Some((frame, later)) = split(rest) {
            frames.push(frame.to_vec());
            rest = later;
        }
        assert!(rest.is_empty());
        Ok((frames, more))
    }

    fn all(&mut self, slot: u16) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let (frames, more) = self.fetch(slot).unwrap();
            all.extend(frames);
            if !more {
                return all;
            }
        }
    }

    fn report(&mut self, slot: u16) -> PortReport {
        self.call(slot, 0, &Report {}, None).unwrap()
    }
}

#[test]
fn a_frame_goes_to_whose_address_it_has() {
    let mut wire = Wire::new();
    let sent = frame(mac(3), mac(2), b"hello");
    assert_eq!(wire.send(2, std::slice::from_ref(&sent)), Ok(0));
    assert_eq!(wire.bells.0, [3]);
    assert_eq!(wire.all(3), [sent]);
    assert!([2, 4, 5].map(|slot| wire.all(slot).len()) == [0; 3]);
    let report = wire.report(3);
    assert_eq!((report.received, report.received_bytes), (1, 19));
}

#[test]
fn groups_and_strangers_go_to_everybody_else_of_the_network() {
    for to in [EVERYBODY, [1, 0, 0x5e, 0, 0, 1], mac(99)] {
        let mut wire = Wire::new();
        let sent = frame(to, mac(2), b"who is there");
        assert_eq!(wire.send(2, std::slice::from_ref(&sent)), Ok(0));
        assert_eq!(wire.bells.0, [3, 4]);
        assert_eq!((wire.all(3), wire.all(4)), (vec![sent.clone()], vec![sent]));
        assert_eq!((wire.all(2).len(), wire.all(5).len()), (0, 0));
    }
}

#[test]
fn what_is_for_bridges_or_for_the_sender_stays() {
    let mut wire = Wire::new();
    let frames = [frame([1, 0x80, 0xc2, 0, 0, 1], mac(2), b"pause"), frame(mac(2), mac(2), b"me")];
    assert_eq!(wire.send(2, &frames), Ok(2));
    assert!((2..=5).all(|slot| wire.all(slot).is_empty()) && wire.bells.0.is_empty());
}

#[test]
fn nobody_sends_from_anothers_address() {
    let mut wire = Wire::new();
    let frames = [frame(mac(4), mac(3), b"it was 3"), frame(EVERYBODY, EVERYBODY, b""), frame(mac(4), mac(2), b"me")];
    assert_eq!(wire.send(2, &frames), Ok(2));
    assert_eq!(wire.all(4), [frames[2].clone()]);
    assert!(wire.all(3).is_empty());
    let report = wire.report(2);
    assert_eq!((report.sent, report.foreign), (3, 2));
}

#[test]
fn a_queue_that_is_full_drops_and_counts_and_the_others_go_on() {
    let mut wire = Wire::new();
    for number in 0..FRAMES + 5 {
        let sent = frame(mac(3), mac(2), &[number as u8]);
        assert_eq!(wire.send(2, &[sent]), Ok(u64::from(number >= FRAMES)));
    }
    assert_eq!(wire.bells.0, [3], "it was told once");
    assert_eq!(wire.send(2, &[frame(EVERYBODY, mac(2), b"all")]), Ok(0), "4 took it");
    assert_eq!(wire.all(4).len(), 1);
    let got = wire.all(3);
    assert_eq!(got.len(), FRAMES);
    assert!(got.iter().enumerate().all(|(number, frame)| frame[HEADER] == number as u8), "in their order");
    assert_eq!(wire.report(3).missed, 6);
    wire.bells.0.clear();
    assert_eq!(wire.send(2, &[frame(mac(3), mac(2), b"again")]), Ok(0));
    assert_eq!(wire.bells.0, [3], "and told again when it had fetched everything");
}

#[test]
fn more_than_fits_is_fetched_again() {
    let mut wire = Wire::new();
    let long = frame(mac(3), mac(2), &[7; 1500]);
    for _ in 0..FRAMES {
        wire.send(2, std::slice::from_ref(&long)).unwrap();
    }
    let (first, more) = wire.fetch(3).unwrap();
    assert_eq!((first.len(), more), (AREA / (long.len() + 2), true));
    wire.bells.0.clear();
    wire.send(2, std::slice::from_ref(&long)).unwrap();
    assert!(wire.bells.0.is_empty(), "it knows that there is more");
    assert_eq!(wire.all(3).len(), FRAMES - first.len() + 1);
}

#[test]
fn what_is_no_batch_sends_nothing() {
    let mut wire = Wire::new();
    let good = batch(&[frame(mac(3), mac(2), b"good")]);
    let with = |more: &[u8]| [&good, more].concat();
    let runt = with(&batch(&[vec![0; HEADER - 1]]));
    let giant = with(&batch(&[vec![0; MAX_FRAME + 1]]));
    for bytes in [runt, giant, with(&[1]), with(&[60, 0, 1, 2, 3])] {
        let request = Send { bytes: bytes.len() as u64 };
        let sent = wire.call(2, 0, &request, Some(&mut Pages(bytes, false)));
        assert_eq!(sent, Err(Status::Malformed));
    }
    for (bytes, status) in
        [(AREA as u64 + 1, Status::Malformed), (u64::MAX, Status::Malformed), (4097, Status::BadLease)]
    {
        let sent = wire.call(2, 0, &Send { bytes }, Some(&mut Pages(vec![0; 4096], false)));
        assert_eq!(sent, Err(status));
    }
    assert_eq!(wire.call(2, 0, &Send { bytes: 0 }, None), Err(Status::BadLease));
    assert_eq!(wire.call(2, 0, &Fetch {}, None), Err(Status::BadLease));
    assert_eq!(wire.call(2, 0, &Fetch {}, Some(&mut Pages(vec![0; AREA], false))), Err(Status::BadLease));
    assert!(wire.all(3).is_empty() && wire.bells.0.is_empty());
}

#[test]
fn who_has_no_port_is_told_so() {
    let mut wire = Wire::new();
    for slot in [0, 6, 63] {
        assert_eq!(wire.send(slot, &[frame(mac(3), mac(2), b"x")]), Err(Status::NotFound));
        assert_eq!(wire.fetch(slot), Err(Status::NotFound));
    }
    let answer = wire.switch.handle(ServiceId::new(2, 0), &[99; 8], None::<&mut Pages>, &mut wire.bells);
    assert_eq!(answer, (Status::Malformed, [0; 8]));
}

#[test]
fn a_vmms_next_life_finds_nothing_of_the_last() {
    let mut wire = Wire::new();
    let sent = frame(mac(3), mac(2), b"hello");
    wire.send(2, std::slice::from_ref(&sent)).unwrap();
    assert_eq!(wire.bells.0, [3]);
    let mut pages = Pages(vec![0; AREA], true);
    assert_eq!(wire.call(3, 1, &Fetch {}, Some(&mut pages)), Ok(Fetched { bytes: 0, more: false }));
    wire.send(2, &[sent]).unwrap();
    assert_eq!(wire.call(3, 1, &Fetch {}, Some(&mut pages)).map(|got| got.bytes), Ok(21));
    // A life after that finds nothing of it.
    wire.send(2, &[frame(mac(3), mac(2), b"for life 1")]).unwrap();
    assert_eq!(wire.call(3, 2, &Fetch {}, Some(&mut pages)), Ok(Fetched { bytes: 0, more: false }));
}

#[test]
fn a_successor_calls_everybody_in() {
    let mut switch = made();
    let mut bells = Rung::default();
    assert_eq!(switch.configure(&file(&[(2, 1, mac(2)), (9, 3, mac(9))])), 0);
    switch.call_in(&mut bells);
    assert_eq!(bells.0, [2, 9]);
}

#[test]
fn a_file_that_contradicts_itself_gives_no_port() {
    let mut switch = made();
    let ports = [(2, 1, mac(2)), (3, 1, mac(2)), (4, 2, mac(2)), (5, 1, EVERYBODY), (6, 0, mac(6))];
    assert_eq!((switch.configure(&file(&ports)), switch.ports()), (2, 2));
    assert_eq!((made().configure(&[1; 7]), made().configure(&[])), (1, 0));
    let many: Vec<_> = (0..MAX_PORTS + 1).map(|slot| (slot, 1, mac(slot as u8))).collect();
    let mut switch = made();
    assert_eq!((switch.configure(&file(&many)), switch.ports()), (1, MAX_PORTS));
}

proptest! {
    /// Whatever is sent, a port gets only what is of its network, from the sender's address and for it, or for nobody known; and in
    /// its order.
    #[test]
    fn frames_keep_to_their_network(acts in prop::collection::vec((2u16..6, 0u8..7, 0u8..7, any::<bool>()), 1..120)) {
        let mut wire = Wire::new();
        let mut due: [Vec<Vec<u8>>; 6] = Default::default();
        let networks = [0, 0, 1, 1, 1, 2];
        let own = |slot: u16| if slot == 5 { mac(2) } else { mac(slot as u8) };
        for (number, (slot, to, from, fetches)) in acts.into_iter().enumerate() {
            if fetches {
                let got = wire.all(slot);
                prop_assert_eq!(got, std::mem::take(&mut due[usize::from(slot)]));
                continue;
            }
            let (to, from) = (if to == 0 { EVERYBODY } else { mac(to) }, if from == 0 { own(slot) } else { mac(from) });
            let sent = frame(to, from, &number.to_le_bytes());
            wire.send(slot, std::slice::from_ref(&sent)).unwrap();
            if from != own(slot) {
                continue;
            }
            let here = |other: u16| networks[usize::from(other)] == networks[usize::from(slot)];
            let known = (2..6).any(|other| here(other) && own(other) == to);
            for other in (2..6).filter(|other| *other != slot && here(*other) && (!known || own(*other) == to)) {
                let queue = &mut due[usize::from(other)];
                if queue.len() < FRAMES {
                    queue.push(sent.clone());
                }
            }
        }
    }

    /// Any words and any pages: nobody gets what isn't a frame.
    #[test]
    fn any_batch_is_taken_whole_or_not(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0u64..300) {
        let mut wire = Wire::new();
        let count = bytes.get(..length as usize).and_then(count);
        let sent = wire.call(2, 0, &Send { bytes: length }, Some(&mut Pages(bytes, false)));
        prop_assert_eq!(sent.is_ok(), count.is_some());
    }
}
