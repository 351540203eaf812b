//! The memory device under a driver that keeps to the rules, or breaks one, and as a part of a VM.

mod common;

use caisson_fuzz::guest::fake::Fake;
use caisson_fuzz::virtio::driver::{Driver, USUAL};
use caisson_fuzz::virtio::mem;
use caisson_fuzz::virtio::memory::REGION;
use caisson_proto::abi::Status;
use caisson_proto::console::Knob;
use caisson_vmm::need::Told;
use caisson_vmm::plugged::BLOCK;
use caisson_vmm::ram::{HIGH_START, Ram};
use caisson_vmm::virtio::Trouble;
use caisson_vmm::virtio::mem::MOST;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

const MEMORY: usize = 0x4_0000;
const REQUEST: u64 = 0x2_0000;
const RESPONSE: u64 = 0x2_1000;

/// A driver of a region, of which so many blocks are wanted.
fn started(blocks: u64) -> Driver {
    let mut driver = Driver::new(mem(blocks * BLOCK), MEMORY);
    assert!(driver.start(USUAL | 1 << 1));
    driver
}

/// A request about so many blocks from the region's n-th on: how it ended, and the state that was told.
fn request(driver: &mut Driver, kind: u16, gpa: u64, blocks: u16) -> (u16, u16) {
    let mut words = u64::from(kind).to_le_bytes().to_vec();
    words.extend(gpa.to_le_bytes());
    words.extend(u64::from(blocks).to_le_bytes());
    driver.memory.put(REQUEST, &words);
    driver.chain(0, 0, &[(REQUEST, 24)], &[(RESPONSE, 10)]);
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!(driver.used(0), Some((0, 10)));
    let response = driver.memory.get::<10>(RESPONSE);
    (u16::from_le_bytes([response[0], response[1]]), u16::from_le_bytes([response[8], response[9]]))
}

fn block(number: u64) -> u64 {
    REGION.start + number * BLOCK
}

/// Bytes that are plugged and wanted, by the configuration.
fn sizes(driver: &Driver) -> (u64, u64) {
    (driver.device.read(0x100 + 40, 8), driver.device.read(0x100 + 48, 8))
}

#[test]
fn the_driver_is_told_where_it_lies() {
    let mut driver = started(3);
    assert_eq!((driver.read(8), driver.offered() & 3), (24, 2), "no node, and what isn't plugged can't be read");
    let region = REGION.end - REGION.start;
    for (at, value) in [(0, BLOCK), (8, 0), (16, REGION.start), (24, region), (32, region), (40, 0), (48, 3 * BLOCK)] {
        assert_eq!(driver.device.read(0x100 + at, 8), value, "{at}");
    }
}

#[test]
fn blocks_are_plugged_and_unplugged() {
    let mut driver = started(4);
    assert_eq!(request(&mut driver, STATE, block(0), 8), (ACK, 1));
    assert_eq!(request(&mut driver, PLUG, block(1), 3), (ACK, 0));
    assert_eq!(sizes(&driver), (3 * BLOCK, 4 * BLOCK));
    assert_eq!(request(&mut driver, STATE, block(1), 3), (ACK, 0));
    assert_eq!(request(&mut driver, STATE, block(0), 2), (ACK, 2));
    assert_eq!(request(&mut driver, PLUG, block(4), 2), (NACK, 0), "more than is wanted");
    assert_eq!(request(&mut driver, PLUG, block(4), 1), (ACK, 0));
    assert_eq!(request(&mut driver, UNPLUG, block(2), 2), (ACK, 0));
    assert_eq!(request(&mut driver, STATE, block(1), 4), (ACK, 2));
    assert_eq!(sizes(&driver).0, 2 * BLOCK);
    assert_eq!(request(&mut driver, UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(request(&mut driver, STATE, block(0), 8), (ACK, 1));
    assert_eq!(sizes(&driver).0, 0);
}

#[test]
fn one_request_unplugs_only_so_much() {
    let all = 2 * MOST + 1;
    let mut driver = started(all);
    assert_eq!(request(&mut driver, PLUG, block(0), all as u16), (ACK, 0));
    assert_eq!(request(&mut driver, UNPLUG, block(0), MOST as u16 + 1), (BUSY, 0));
    assert_eq!(sizes(&driver).0, all * BLOCK, "nothing of it");
    driver.write(0x64, 3);
    for left in [MOST + 1, 1] {
        assert_eq!(request(&mut driver, UNPLUG_ALL, 0, 0), (BUSY, 0));
        assert_eq!(sizes(&driver).0, left * BLOCK);
        assert_eq!(driver.read(0x60) & 2, 2, "the driver is to ask again");
        driver.write(0x64, 3);
    }
    assert_eq!(request(&mut driver, UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!((sizes(&driver).0, driver.read(0x60) & 2), (0, 0));
    assert_eq!(request(&mut driver, PLUG, block(0), MOST as u16), (ACK, 0));
    assert_eq!(request(&mut driver, UNPLUG, block(0), MOST as u16), (ACK, 0));
}

#[test]
fn what_is_no_request_is_an_error_and_changes_nothing() {
    let mut driver = started(8);
    assert_eq!(request(&mut driver, PLUG, block(2), 2), (ACK, 0));
    let blocks = ((REGION.end - REGION.start) / BLOCK) as u16;
    for (kind, gpa, count) in [
        (PLUG, block(0), 0),
        (PLUG, block(0) + 4096, 1),
        (PLUG, REGION.start - BLOCK, 1),
        (PLUG, REGION.end, 1),
        (PLUG, block(1), blocks),
        (PLUG, u64::MAX - BLOCK + 1, 1),
        (PLUG, block(1), 2),
        (PLUG, block(2), 1),
        (UNPLUG, block(1), 2),
        (UNPLUG, block(2), 3),
        (UNPLUG, block(2), 0),
        (UNPLUG, block(2) + 1, 1),
        (STATE, block(0), 0),
        (STATE, REGION.end - BLOCK, 2),
        (4, block(0), 1),
        (u16::MAX, block(0), 1),
    ] {
        assert_eq!(request(&mut driver, kind, gpa, count), (ERROR, 0), "{kind} {gpa:x} {count}");
        assert_eq!(sizes(&driver).0, 2 * BLOCK);
    }
    assert!(!driver.device.is_broken());
    // Too short to be a request, or no room for the response.
    for (reads, writes) in [((REQUEST, 23), (RESPONSE, 10)), ((REQUEST, 24), (RESPONSE, 9))] {
        let mut driver = started(8);
        driver.chain(0, 0, &[reads], &[writes]);
        driver.offer(0, 0);
        driver.notify(0);
        assert!(driver.device.is_broken());
    }
}

#[test]
fn without_memory_the_driver_waits_and_is_told_when_there_is_some() {
    let mut driver = started(2);
    driver.memory.refuses = Some(Status::Exhausted);
    for _ in 0..2 {
        assert_eq!(request(&mut driver, PLUG, block(0), 1), (BUSY, 0));
    }
    assert_eq!(driver.told, [Trouble::NotPlugged(Status::Exhausted)], "once");
    assert_eq!((request(&mut driver, STATE, block(0), 1), sizes(&driver).0), ((ACK, 1), 0));
    driver.write(0x64, 3);
    let told = |spare| Told { lacking: 0, spare, vms: 1 };
    driver.device.follow(&told(0));
    assert!(!driver.device.line(), "there is none yet");
    driver.device.follow(&told(1));
    assert_eq!(driver.read(0x60), 2, "the driver looks again");
    driver.write(0x64, 3);
    driver.device.follow(&told(1));
    assert!(!driver.device.line(), "once");
    driver.memory.refuses = None;
    assert_eq!(request(&mut driver, PLUG, block(0), 1), (ACK, 0));
    driver.memory.refuses = Some(Status::Dead);
    assert_eq!(request(&mut driver, UNPLUG, block(0), 1), (BUSY, 0));
    assert_eq!(request(&mut driver, UNPLUG_ALL, 0, 0), (BUSY, 0));
    assert_eq!(sizes(&driver).0, BLOCK);
}

#[test]
fn people_change_what_is_wanted_and_the_driver_is_told() {
    let mut driver = started(2);
    let generation = driver.read(0xfc);
    assert!(driver.device.resize(Knob::Plugged, 5 * BLOCK));
    assert_eq!((driver.read(0x60), sizes(&driver).1), (2, 5 * BLOCK));
    assert_ne!(driver.read(0xfc), generation);
    driver.write(0x64, 2);
    assert!(driver.device.resize(Knob::Plugged, 5 * BLOCK) && !driver.device.line(), "nothing is new");
    let region = REGION.end - REGION.start;
    for (knob, bytes) in [(Knob::Plugged, 1), (Knob::Plugged, region + BLOCK), (Knob::Balloon, 0)] {
        assert!(!driver.device.resize(knob, bytes));
    }
    assert!(driver.device.resize(Knob::Plugged, region));
    // A driver that isn't there yet finds it when it comes.
    let mut driver = Driver::new(mem(0), MEMORY);
    assert!(driver.device.resize(Knob::Plugged, BLOCK) && !driver.device.line());
    assert!(driver.start(USUAL));
    assert_eq!(sizes(&driver), (0, BLOCK));
}

#[test]
fn plugged_memory_is_memory_and_nothing_else_of_the_region_is() {
    let (mut ram, mut fake) = (Ram::with_region(BLOCK, 4 * BLOCK), Fake::sparse());
    let start = ram.plugged().region().start;
    assert_eq!(start, HIGH_START);
    assert!(!ram.contains(start) && ram.write(&mut fake, start, b"x").is_err());
    ram.plug(&mut fake, start + BLOCK, 2 * BLOCK).unwrap();
    assert_eq!(fake.promised, 1024);
    assert_eq!(ram.plug(&mut fake, start, 2 * BLOCK), Err(Status::State));
    assert_eq!(ram.unplug(&mut fake, start, 2 * BLOCK), Err(Status::State));
    assert_eq!(ram.plug(&mut fake, start + 1, BLOCK), Err(Status::Range));
    assert_eq!(ram.plug(&mut fake, BLOCK, BLOCK), Err(Status::Range), "that is no part of it");
    ram.write(&mut fake, start + 2 * BLOCK - 2, b"over").unwrap();
    assert!(ram.write(&mut fake, start + BLOCK - 2, b"over").is_err(), "half of it lies before");
    assert!(ram.write(&mut fake, start + 3 * BLOCK - 2, b"over").is_err(), "half of it lies behind");
    assert!(ram.is_backed(start + BLOCK) && ram.is_backed(start + 2 * BLOCK));
    // A page that the guest gave back isn't owed any more when its block goes.
    ram.release(&mut fake, start / 4096 + 1024, 1).unwrap();
    let epoch = ram.epoch();
    ram.unplug(&mut fake, start + BLOCK, 2 * BLOCK).unwrap();
    assert_ne!(ram.epoch(), epoch, "who kept an address must ask again");
    assert_eq!(fake.promised, 1024, "all of it was taken from memory once, and given back");
    assert!(!ram.is_backed(start + BLOCK) && !ram.contains(start + BLOCK));
    assert_eq!(ram.release(&mut fake, start / 4096 + 512, 1), Err(Status::Range));
    // What was never touched is promised no more.
    ram.plug(&mut fake, start, BLOCK).unwrap();
    ram.unplug(&mut fake, start, BLOCK).unwrap();
    assert_eq!(fake.promised, 1024);
    // It comes back empty.
    ram.plug(&mut fake, start + BLOCK, BLOCK).unwrap();
    let mut seen = [1; 2];
    ram.read(&mut fake, start + 2 * BLOCK - 2, &mut seen).unwrap();
    assert_eq!(seen, [0; 2]);
}
