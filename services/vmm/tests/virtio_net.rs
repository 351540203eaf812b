//! The network's card under a driver that keeps to the rules, one that doesn't, and a switch that says anything.

mod common;

use caisson_fuzz::virtio::driver::{Driver, USUAL};
use caisson_proto::switch::{AREA, HEADER, MAX_FRAME, begin, split};
use caisson_vmm::virtio::Trouble;
use caisson_vmm::virtio::memory::Broken;
use caisson_vmm::virtio::mmio::Transport;
use caisson_vmm::virtio::net::{Counts, Net, RECEIVE, TRANSMIT};

const DATA: u64 = 0x2_1000;
const MEMORY: usize = 0x4_0000;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Bytes before a frame.
const BEFORE: usize = 12;

fn card() -> Driver {
    let mut driver = Driver::new(Transport::new(Box::new(Net::new(MAC))), MEMORY);
    assert!(driver.start(USUAL | 1 << 5));
    driver
}

fn net(driver: &mut Driver) -> &mut Net {
    driver.device.net().unwrap()
}

fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 + bytes) as u8).collect()
}

/// What the driver sends with this header is put into memory in pieces.
fn transmit(driver: &mut Driver, header: [u8; BEFORE], frame: &[u8]) {
    driver.memory.put(DATA, &[&header[..], frame].concat());
    let all = (BEFORE + frame.len()) as u32;
    // The header ends within a piece.
    driver.chain(1, 0, &[(DATA, 5.min(all)), (DATA + 5, all.saturating_sub(5))], &[]);
    driver.offer(1, 0);
    driver.notify(TRANSMIT.into());
}

/// The frames that were gathered.
fn sent(driver: &mut Driver) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    net(driver).send(|area, bytes| {
        let mut rest = &area.0[..bytes];
        while let Some((frame, later)) = split(rest) {
            frames.push(frame.to_vec());
            rest = later;
        }
        assert!(rest.is_empty());
        Some(0)
    });
    frames
}

/// The switch gives these frames.
fn give(driver: &mut Driver, frames: &[Vec<u8>], more: bool) {
    net(driver).fetch(|area| {
        let mut at = 0;
        for frame in frames {
            let (place, next) = begin(&mut area.0, at, frame.len()).unwrap();
            place.copy_from_slice(frame);
            at = next;
        }
        Some((at, more))
    });
}

fn counts(driver: &mut Driver) -> Counts {
    net(driver).counts()
}

#[test]
fn its_address_and_its_features() {
    let mut driver = card();
    assert_eq!((driver.read(8), driver.offered() & 0xff_ffff), (1, 1 << 5), "an address, and no offload");
    assert_eq!(driver.device.read(0x100, 8), u64::from_le_bytes([2, 0, 0, 0, 0, 7, 0, 0]));
}

#[test]
fn frames_go_out_as_they_are() {
    let mut driver = card();
    for bytes in [HEADER, 60, 1514, MAX_FRAME] {
        transmit(&mut driver, [0; BEFORE], &frame(bytes));
        assert_eq!((sent(&mut driver), driver.used(1)), (vec![frame(bytes)], Some((0, 0))));
    }
    assert!(!net(&mut driver).send(|_, _| panic!("there is nothing")));
    let bytes = (HEADER + 60 + 1514 + MAX_FRAME) as u64;
    assert_eq!(counts(&mut driver), Counts { sent: 4, sent_bytes: bytes, ..Counts::default() });
}

#[test]
fn runts_and_giants_are_lost_and_counted() {
    let mut driver = card();
    for bytes in [0, HEADER - 1, MAX_FRAME + 1, 9000] {
        transmit(&mut driver, [0; BEFORE], &frame(bytes));
        assert_eq!((sent(&mut driver).len(), driver.used(1)), (0, Some((0, 0))), "{bytes}");
    }
    assert_eq!(counts(&mut driver), Counts { sent: 4, lost: 4, ..Counts::default() });
    assert!(!driver.device.is_broken());
}

#[test]
fn what_was_not_offered_breaks_it() {
    for (header, broken) in [([1, 0], Broken::Offload), ([0, 1], Broken::Offload), ([0, 0x80], Broken::Offload)] {
        let mut driver = card();
        let [flags, segmentation] = header;
        transmit(&mut driver, [flags, segmentation, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame(60));
        assert_eq!((driver.told.clone(), sent(&mut driver).len()), (vec![Trouble::Broken(broken)], 0));
    }
    // Bits that nobody knows mean nothing (section 5.1.6.2.2).
    let mut driver = card();
    transmit(&mut driver, [0xfe, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], &frame(60));
    assert_eq!(sent(&mut driver), [frame(60)]);
    // A header is the least.
    driver.chain(1, 0, &[(DATA, 11)], &[]);
    driver.offer(1, 0);
    driver.notify(1);
    assert_eq!(driver.told, [Trouble::Broken(Broken::Request)]);
}

#[test]
fn a_batch_that_is_full_lets_the_driver_wait() {
    let mut driver = card();
    driver.memory.put(DATA, &[&[0; BEFORE][..], &frame(1514)].concat());
    driver.chain(1, 0, &[(DATA, 1526)], &[]);
    for _ in 0..16 {
        driver.offer(1, 0);
    }
    driver.notify(1);
    let (fit, mut all) = (AREA / 1516, 0);
    for expected in [fit, 16 - fit, 0] {
        let frames = sent(&mut driver);
        assert!(frames.len() == expected && frames.iter().all(|one| *one == frame(1514)));
        all += frames.len();
        driver.device.poke(TRANSMIT, &mut driver.memory);
    }
    assert_eq!((all, std::iter::from_fn(|| driver.used(1)).count()), (16, 16));
}

#[test]
fn what_the_switch_drops_or_does_not_take_is_lost() {
    let mut driver = card();
    for (answer, lost) in [(Some(0), 0), (Some(1), 1), (Some(99), 2), (None, 3)] {
        transmit(&mut driver, [0; BEFORE], &frame(60));
        assert!(net(&mut driver).send(|_, _| answer));
        assert_eq!(counts(&mut driver).lost, lost, "{answer:?}: no more than there were");
    }
}

#[test]
fn frames_come_in_and_wait_for_buffers() {
    let mut driver = card();
    assert!(net(&mut driver).is_hungry(), "nothing is known yet");
    give(&mut driver, &[frame(60), frame(1514)], false);
    assert_eq!(driver.device.poke(RECEIVE, &mut driver.memory), None);
    assert!(!net(&mut driver).is_hungry() && driver.used(0).is_none(), "no buffer yet");
    driver.chain(0, 0, &[], &[(DATA, 10), (DATA + 10, 1516)]);
    driver.offer(0, 0);
    driver.notify(RECEIVE.into());
    assert_eq!(driver.used(0), Some((0, 72)));
    assert_eq!(driver.memory.get::<12>(DATA), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(driver.memory.get::<60>(DATA + 12)[..], frame(60));
    driver.offer(0, 0);
    driver.notify(RECEIVE.into());
    assert_eq!((driver.used(0), driver.memory.get::<1514>(DATA + 12).to_vec()), (Some((0, 1526)), frame(1514)));
    assert!(!net(&mut driver).is_hungry(), "there was no more");
    net(&mut driver).expect();
    assert!(net(&mut driver).is_hungry());
    assert_eq!(counts(&mut driver), Counts { received: 2, received_bytes: 1574, ..Counts::default() });
}

#[test]
fn a_buffer_that_is_too_short_comes_back_empty() {
    let mut driver = card();
    give(&mut driver, &[frame(1514), frame(60)], false);
    driver.memory.put(DATA, &[0xee; 80]);
    driver.chain(0, 0, &[], &[(DATA, 100)]);
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!((driver.used(0), driver.memory.get::<80>(DATA)), (Some((0, 0)), [0xee; 80]));
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!(driver.used(0), Some((0, 72)), "the next one fits");
    assert_eq!(counts(&mut driver), Counts { cut: 1, received: 1, received_bytes: 60, ..Counts::default() });
}

#[test]
fn whatever_the_switch_says_no_frame_is_made_of_it() {
    let mut driver = card();
    driver.chain(0, 0, &[], &[(DATA, 1526)]);
    driver.offer(0, 0);
    let answers: [(usize, &[u8]); 6] =
        [(usize::MAX, &[]), (AREA + 1, &[]), (3, &[1, 0, 7]), (40, &[60, 0]), (2, &[0, 0]), (1600, &[0xff, 0xff])];
    for (bytes, content) in answers {
        net(&mut driver).expect();
        net(&mut driver).fetch(|area| {
            area.0[..content.len()].copy_from_slice(content);
            Some((bytes, true))
        });
        driver.notify(0);
        assert!(driver.used(0).is_none() && !net(&mut driver).is_hungry(), "{bytes} {content:?}");
    }
    net(&mut driver).fetch(|_| None);
    assert!(driver.used(0).is_none() && !driver.device.is_broken());
}

#[test]
fn a_driver_that_begins_anew_finds_nothing_old() {
    let mut driver = card();
    transmit(&mut driver, [0; BEFORE], &frame(60));
    give(&mut driver, &[frame(60)], false);
    assert!(driver.start(USUAL));
    assert!(sent(&mut driver).is_empty() && net(&mut driver).is_hungry());
    assert_eq!(counts(&mut driver), Counts { sent: 1, sent_bytes: 60, lost: 1, ..Counts::default() });
    driver.chain(0, 0, &[], &[(DATA, 1526)]);
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!(driver.used(0), None);
}
