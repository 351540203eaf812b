//! What a guest says to the processor through a host that may drop, repeat, reorder and change it: 56860 chapter 7.

mod common;

use caisson_qemu_psp::rmp::{Entry, Size};
use caisson_qemu_psp::snp::Message;
use caisson_qemu_psp::{Command, Status};
use common::snp::*;
use common::*;

#[test]
fn a_report_tells_what_was_launched() {
    let mut rig = Rig::snp();
    let mut guest = Talker::launch(&mut rig, 0, 1);
    let report = guest.report(&mut rig, 0, &[0x33; 64]).expect("a report");
    assert_eq!((word(&report, 0), word(&report, 0x30), word(&report, 0x34)), (3, 0, 1));
    assert_eq!(report[8..16], POLICY.to_le_bytes());
    assert_eq!(report[0x50..0x90], [0x33; 64]);
    assert_eq!(report[0x1a0..0x1e0], rig.processor.config().chip.id);
    assert_eq!(report[0x2a0 + 144..], [0; 0x4a0 - 0x2a0 - 144]);
    let again = guest.report(&mut rig, 0, &[0x33; 64]).expect("a report");
    assert_eq!(report, again, "signatures are deterministic");
    let other = Talker::launch(&mut rig, 1, 2).report(&mut rig, 0, &[0x33; 64]).expect("a report");
    assert_eq!(report[0x90..0xc0], other[0x90..0xc0], "the same pages");
    assert_ne!(report[0x140..0x160], other[0x140..0x160], "another guest");
}

#[test]
fn a_vmpl_speaks_for_itself_and_those_below() {
    let mut rig = Rig::snp();
    let guest = Talker::launch(&mut rig, 0, 1);
    for key in 0..4u8 {
        let mut talker = Talker { key, sequence: 0, ..guest.clone() };
        for vmpl in 0..6u32 {
            let good = (u32::from(key)..4).contains(&vmpl);
            assert_eq!(talker.report(&mut rig, vmpl, &[0; 64]).is_ok(), good, "key {key}, VMPL {vmpl}");
        }
    }
}

#[test]
fn the_chips_key_can_be_forbidden_and_no_other_is_there() {
    let mut rig = Rig::snp();
    let mut guest = Talker::launch(&mut rig, 0, 1);
    for (selected, expected) in [(0u32, 0), (1, 0), (2, Status::InvalidKey as u32), (3, Status::InvalidParam as u32)] {
        let request = pack(&[&[0; 64], &words(&[0, selected]), &[0; 24]]);
        let (_, response) = guest.ask(&mut rig, 5, &request).expect("an answer");
        assert_eq!(word(&response, 0), expected);
        assert_eq!(response.len(), if expected == 0 { 0x4c0 } else { 0x20 });
    }
    let context = rig.launching(1, 2);
    let mut finish = pack(&[&context.to_le_bytes(), &[0; 56]]);
    assert_eq!(rig.add(context, 2, 5, 5 << 20, 0x1000), Status::Success);
    finish[24] = 4;
    assert_eq!(rig.run(Command::SnpLaunchFinish, &finish).0, Status::Success);
    let mut guest = Talker::new(&rig, context, 5 << 20);
    assert_eq!(guest.report(&mut rig, 0, &[0; 64]), Err(Status::InvalidKey as u32));
}

#[test]
fn a_message_counts_once_and_in_its_order() {
    let mut rig = Rig::snp();
    let mut guest = Talker::launch(&mut rig, 0, 1);
    let request = pack(&[&[0; 96]]);
    let first = guest.sealed(5, &request);
    assert_eq!(guest.send(&mut rig, &first), Status::Success);
    assert_eq!(guest.send(&mut rig, &first), Status::InvalidParam, "replayed");
    for ahead in [1, 3, 4] {
        let mut early = guest.clone();
        early.sequence += ahead;
        let early = early.sealed(5, &request);
        assert_eq!(guest.send(&mut rig, &early), Status::InvalidParam, "number {}", ahead + 1);
    }
    guest.sequence = 2;
    let second = guest.sealed(5, &request);
    // With the number that is expected written over another.
    let mut forged = first.clone();
    forged[0x20..0x28].copy_from_slice(&3u64.to_le_bytes());
    assert_eq!(guest.send(&mut rig, &forged), Status::BadMeasurement);
    assert_eq!(guest.send(&mut rig, &second), Status::Success, "refusals don't count");
}

#[test]
fn a_changed_message_is_refused() {
    let mut rig = Rig::snp();
    let guest = Talker::launch(&mut rig, 0, 1);
    let good = guest.sealed(5, &[0; 96]);
    for (at, expected) in [
        (0x00, Status::BadMeasurement),
        (0x0f, Status::BadMeasurement),
        (0x20, Status::InvalidParam),
        (0x28, Status::InvalidParam),
        (0x30, Status::InvalidParam),
        (0x31, Status::InvalidParam),
        (0x32, Status::InvalidParam),
        (0x34, Status::BadMeasurement),
        (0x35, Status::InvalidParam),
        (0x36, Status::BadMeasurement),
        (0x37, Status::BadMeasurement),
        (0x38, Status::InvalidParam),
        (0x3c, Status::BadMeasurement),
        (0x3d, Status::InvalidParam),
        (0x5f, Status::InvalidParam),
        (0x60, Status::BadMeasurement),
        (0xbf, Status::BadMeasurement),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(guest.send(&mut rig, &bad), expected, "byte {at:#x}");
    }
    let mut long = good.clone();
    long[0x36..0x38].copy_from_slice(&(4096u16 - 0x5f).to_le_bytes());
    assert_eq!(guest.send(&mut rig, &long), Status::InvalidParam);
    let mut nobody = good.clone();
    nobody[0x3c] = 4;
    assert_eq!(guest.send(&mut rig, &nobody), Status::InvalidParam);
    // Another guest's key.
    let other = Talker::launch(&mut rig, 1, 2);
    assert_eq!(guest.send(&mut rig, &other.sealed(5, &[0; 96])), Status::BadMeasurement);
    assert_eq!(guest.send(&mut rig, &guest.sealed(7, &[0; 96])), Status::InvalidParam, "no such message");
    assert_eq!(guest.send(&mut rig, &guest.sealed(5, &[0; 95])), Status::InvalidLength);
    assert_eq!(guest.send(&mut rig, &guest.sealed(3, &[0; 96])), Status::InvalidLength);
    assert_eq!(guest.send(&mut rig, &good), Status::Success);
}

#[test]
fn pages_and_states_are_asked_for() {
    let mut rig = Rig::snp();
    let context = rig.launching(2, 3);
    let request =
        |context: u64, from: u64, to: u64| pack(&[&context.to_le_bytes(), &from.to_le_bytes(), &to.to_le_bytes()]);
    let launching = rig.run(Command::SnpGuestRequest, &request(context, DATA, DATA)).0;
    assert_eq!(launching, Status::InvalidGuestState);
    let guest = Talker::launch(&mut rig, 0, 1);
    rig.machine.put(DATA, &guest.sealed(5, &[0; 96]));
    for (from, to, expected) in [
        (DATA + 16, DATA, Status::InvalidAddress),
        (DATA, DATA + 16, Status::InvalidAddress),
        (MEMORY, DATA, Status::InvalidAddress),
        (DATA, MEMORY, Status::InvalidAddress),
        (DATA, 2 << 20, Status::InvalidPageState),
    ] {
        assert_eq!(rig.run(Command::SnpGuestRequest, &request(guest.context, from, to)).0, expected);
    }
    *rig.machine.entry(2 << 20) = Entry::firmware(Size::Small);
    assert_eq!(rig.run(Command::SnpGuestRequest, &request(guest.context, DATA, 2 << 20)).0, Status::Success);
}

#[test]
fn derived_keys_depend_on_what_is_chosen() {
    let mut rig = Rig::snp();
    let mut one = Talker::launch(&mut rig, 0, 1);
    let mut two = Talker::launch(&mut rig, 1, 2);
    let key = |root: u32, fields: u64, vmpl: u32, svn: u32, tcb: [u8; 8]| {
        pack(&[&words(&[root, 0]), &fields.to_le_bytes(), &words(&[vmpl, svn]), &tcb])
    };
    let mut ask = |talker: &mut Talker, request: &[u8]| {
        let (kind, response) = talker.ask(&mut rig, 3, request).expect("an answer");
        assert_eq!((kind, response.len()), (4, 0x40));
        (word(&response, 0), response[0x20..].to_vec())
    };
    let plain = key(0, 0, 0, 0, [0; 8]);
    let (status, first) = ask(&mut one, &plain);
    assert_eq!(status, 0);
    assert_eq!(ask(&mut one, &plain).1, first);
    assert_eq!(ask(&mut two, &plain).1, first, "the same chip, the same choice");
    let tcb = [1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ask(&mut one, &key(0, 0, 0, 0, tcb)).1, first, "not chosen, not mixed in");
    let mut keys = vec![first];
    for other in [key(0, 1, 0, 0, [0; 8]), key(0, 8, 0, 0, [0; 8]), key(0, 32, 0, 0, tcb), key(0, 0, 1, 0, [0; 8])] {
        keys.push(ask(&mut one, &other).1);
    }
    let root = key(1, 0, 0, 0, [0; 8]);
    keys.extend([ask(&mut one, &root).1, ask(&mut two, &root).1]);
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key) && *key != [0; 32], "key {index}");
    }
    for refused in [
        key(2, 0, 0, 0, [0; 8]),
        key(0, 1 << 6, 0, 0, [0; 8]),
        key(0, 0, 4, 0, [0; 8]),
        key(0, 0, 0, 1, [0; 8]),
        key(0, 0, 0, 0, [2, 0, 0, 0, 0, 0, 0, 0]),
        key(0, 0, 0, 0, [0, 0, 1, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(ask(&mut one, &refused), (Status::InvalidParam as u32, vec![0; 32]));
    }
}

#[test]
fn a_header_reads_as_it_was_written() {
    let mut page = [0; 4096];
    let message = Message { sequence: u64::MAX, kind: 5, key: 3, length: 4000 };
    assert!(message.seal(&[1; 32], &mut page));
    assert_eq!(Message::parse(&page), Some(message));
    assert!(message.open(&[1; 32], &mut page));
    assert!(page[0x60..].iter().all(|byte| *byte == 0));
    assert!(!Message { length: 4001, ..message }.seal(&[1; 32], &mut page));
}
