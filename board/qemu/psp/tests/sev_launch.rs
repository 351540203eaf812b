//! SEV and SEV-ES guests from their first command to their last: 55766 chapter 6.

mod common;

use caisson_qemu_psp::certificate::{Certificate, LENGTH, Usage};
use caisson_qemu_psp::{Command, Status, crypto};
use common::owner::Owner;
use common::*;
use sha2::{Digest, Sha256};

const GUEST: u64 = 2 << 20;
const ES: u32 = 4;

fn status(rig: &mut Rig, handle: u32) -> (u32, u32, u8) {
    let (status, buffer) = rig.run(Command::GuestStatus, &pack(&[&words(&[handle]), &[0; 9]]));
    assert_eq!(status, Status::Success);
    (word(&buffer, 4), word(&buffer, 8), buffer[12])
}

/// LAUNCH_START with an owner's session.
fn start_with(rig: &mut Rig, policy: u32, certificate: &[u8], session: &[u8]) -> (Status, u32) {
    rig.machine.put(DATA, certificate);
    rig.machine.put(DATA + 0x1000, session);
    let buffer = pack(&[
        &words(&[0, policy]),
        &DATA.to_le_bytes(),
        &words(&[certificate.len() as u32, 0]),
        &(DATA + 0x1000).to_le_bytes(),
        &words(&[session.len() as u32]),
    ]);
    let (status, buffer) = rig.run(Command::LaunchStart, &buffer);
    (status, word(&buffer, 0))
}

fn measure(rig: &mut Rig, handle: u32) -> Vec<u8> {
    assert_eq!(rig.run(Command::LaunchMeasure, &update(handle, DATA, 48)).0, Status::Success);
    rig.machine.get(DATA, 48).to_vec()
}

fn secret_buffer(handle: u32, length: u32) -> Vec<u8> {
    pack(&[
        &words(&[handle, 0]),
        &DATA.to_le_bytes(),
        &words(&[52, 0]),
        &GUEST.to_le_bytes(),
        &words(&[length, 0]),
        &(DATA + 0x1000).to_le_bytes(),
        &words(&[length]),
    ])
}

/// A guest whose owner is known, measured.
fn measured(rig: &mut Rig, owner: &Owner) -> (u32, Vec<u8>) {
    let pdh = rig.export()[..LENGTH].to_vec();
    let sent = owner.session(&pdh, 0);
    let (status, handle) = start_with(rig, 0, &sent.certificate, &sent.session);
    assert_eq!(status, Status::Success);
    assert_eq!(rig.run(Command::Activate, &words(&[handle, 5])).0, Status::Success);
    let measurement = measure(rig, handle);
    (handle, measurement)
}

#[test]
fn an_owner_can_judge_what_was_launched() {
    let mut rig = Rig::initialised();
    let owner = Owner::new();
    let pdh = rig.export()[..LENGTH].to_vec();
    let policy = ES | 1 | 57 << 24 | 1 << 16;
    let sent = owner.session(&pdh, policy);
    let (started, handle) = start_with(&mut rig, policy, &sent.certificate, &sent.session);
    assert_eq!(started, Status::Success);
    assert_eq!(status(&mut rig, handle), (policy, 0, 1));
    assert_eq!(rig.run(Command::Activate, &words(&[handle, 2])).0, Status::Success);

    // A piece of one block, one of several pages and a rest, and two save areas.
    let memory: Vec<u8> = (0..20_000u32).map(|byte| ((byte * 7) >> 3) as u8).collect();
    let pieces = [(GUEST, 16), (GUEST + 4096 + 16, 9_984)];
    rig.machine.put(GUEST, &memory);
    let mut expected = Sha256::new();
    for (at, length) in pieces {
        assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, at, length)).0, Status::Success);
        expected.update(&memory[(at - GUEST) as usize..][..length as usize]);
    }
    for index in 0..2 {
        let at = GUEST + 0x1_0000 + index * 4096;
        rig.machine.put(at, &[0x60 + index as u8; 4096]);
        assert_eq!(rig.run(Command::LaunchUpdateVmsa, &update(handle, at, 4096)).0, Status::Success);
        expected.update([0x60 + index as u8; 4096]);
    }
    let written: usize = rig.machine.private.iter().map(|(asid, _, length)| (*asid == 2) as usize * length).sum();
    assert_eq!(written, 16 + 9_984 + 2 * 4096);

    let told = measure(&mut rig, handle);
    let digest = expected.finalize();
    let version = rig.processor.config().version;
    let head = [4, version.major, version.minor, version.build];
    let right = crypto::hmac(&owner.tik, &[&head, &policy.to_le_bytes(), &digest, &told[32..]]);
    assert_eq!(told[..32], right);
    assert_eq!(status(&mut rig, handle), (policy, 2, 2));
    assert_eq!(rig.simple(Command::LaunchFinish, handle), Status::Success);
    assert_eq!(status(&mut rig, handle), (policy, 2, 3));

    // The report says the same, signed by the endorsement key.
    let report = pack(&[&words(&[handle, 0]), &DATA.to_le_bytes(), &[0x5a; 16], &words(&[0xd0])]);
    let (reported, _) = rig.run(Command::Attestation, &report);
    assert_eq!(reported, Status::Success);
    let report = rig.machine.get(DATA, 0xd0).to_vec();
    assert_eq!((&report[..16], &report[16..48], word(&report, 48)), (&[0x5a; 16][..], &digest[..], policy));
    assert_eq!((word(&report, 52), word(&report, 56)), (Usage::Pek as u32, 2));
    let pek = rig.export()[LENGTH..2 * LENGTH].to_vec();
    let key = Certificate(pek.try_into().expect("a certificate")).key(Usage::Pek).expect("a key");
    let (r, s) = (report[64..136].try_into().expect("r"), report[136..208].try_into().expect("s"));
    assert!(crypto::verify(&key, &Sha256::digest(&report[..52]), &r, &s));
    assert!(!crypto::verify(&key, &Sha256::digest(&report[..51]), &r, &s));
}

#[test]
fn a_session_for_somebody_else_is_refused() {
    let mut rig = Rig::initialised();
    let owner = Owner::new();
    let pdh = rig.export()[..LENGTH].to_vec();
    let good = owner.session(&pdh, 1);
    let before = rig.status();
    // Another policy than the owner's, a bit wrong anywhere, the wrong certificate, wrong lengths.
    assert_eq!(start_with(&mut rig, 3, &good.certificate, &good.session).0, Status::BadMeasurement);
    for at in [0, 16, 47, 48, 64, 95, 96, 127] {
        let mut session = good.session.clone();
        session[at] ^= 0x10;
        let status = start_with(&mut rig, 1, &good.certificate, &session).0;
        assert_eq!(status, Status::BadMeasurement, "byte {at}");
    }
    for (at, what) in
        [(0, "version"), (8, "usage"), (12, "algorithm"), (16, "curve"), (20, "no point"), (0x5f, "too long")]
    {
        let mut certificate = good.certificate.clone();
        certificate[at] ^= 0x40;
        let status = start_with(&mut rig, 1, &certificate, &good.session).0;
        assert_eq!(status, Status::InvalidCertificate, "{what}");
    }
    assert_eq!(start_with(&mut rig, 1, &good.certificate[1..], &good.session).0, Status::InvalidLength);
    assert_eq!(start_with(&mut rig, 1, &good.certificate, &good.session[1..]).0, Status::InvalidLength);
    assert_eq!(start_with(&mut rig, 1, &good.certificate, &[]).0, Status::InvalidLength);
    assert_eq!(rig.run(Command::PdhGen, &[]).0, Status::Success);
    assert_eq!(start_with(&mut rig, 1, &good.certificate, &good.session).0, Status::BadMeasurement, "an old key");
    assert_eq!(rig.status(), before, "nobody was launched");
}

#[test]
fn policies_that_cant_be_kept_are_refused() {
    let mut rig = Rig::initialised();
    for policy in [1 << 6, 1 << 15, 2 << 16, 58 << 24 | 1 << 16] {
        assert_eq!(rig.run(Command::LaunchStart, &launch_start(policy)).0, Status::PolicyFailure, "{policy:#x}");
    }
    assert_eq!(rig.run(Command::LaunchStart, &pack(&[&words(&[7, 0]), &[0; 28]])).0, Status::Unsupported);
    let mut plain = Rig::new();
    assert_eq!(plain.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    assert_eq!(plain.run(Command::LaunchStart, &launch_start(ES)).0, Status::PolicyFailure);
}

#[test]
fn memory_is_checked_before_anything_is_measured() {
    let mut rig = Rig::initialised();
    let handle = rig.guest(0, 5);
    let reference = rig.guest(0, 6);
    for (at, length, expected) in [
        (GUEST, 0, Status::InvalidLength),
        (GUEST, 15, Status::InvalidLength),
        (GUEST + 8, 16, Status::InvalidAddress),
        (MEMORY - 16, 32, Status::InvalidAddress),
        ((8 << 20) - 4096, 8192, Status::InvalidAddress),
        (u64::MAX - 15, 32, Status::InvalidAddress),
        (GUEST, u32::MAX - 15, Status::InvalidAddress),
    ] {
        assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, at, length)).0, expected, "{at:#x} {length:#x}");
    }
    assert_eq!(rig.run(Command::LaunchUpdateVmsa, &update(handle, GUEST, 4096)).0, Status::Unsupported);
    let es = rig.guest(ES, 1);
    for (at, length, expected) in [
        (GUEST, 4080, Status::InvalidLength),
        (GUEST, 8192, Status::InvalidLength),
        (GUEST + 16, 4096, Status::InvalidAddress),
    ] {
        assert_eq!(rig.run(Command::LaunchUpdateVmsa, &update(es, at, length)).0, expected);
    }
    assert!(rig.machine.private.is_empty());
    // The digest is that of a guest to which nothing was done.
    for guest in [handle, reference] {
        measure(&mut rig, guest);
        let report = pack(&[&words(&[guest, 0]), &DATA.to_le_bytes(), &[0; 16], &words(&[0xd0])]);
        assert_eq!(rig.run(Command::Attestation, &report).0, Status::Success);
        assert_eq!(rig.machine.get(DATA + 16, 32), &Sha256::digest([])[..]);
    }
}

#[test]
fn states_and_activity_are_asked_for() {
    let mut rig = Rig::initialised();
    let handle = rig.start(0);
    let data = update(handle, GUEST, 16);
    assert_eq!(rig.run(Command::LaunchUpdateData, &data).0, Status::Inactive);
    assert_eq!(rig.simple(Command::LaunchFinish, handle), Status::InvalidGuestState);
    assert_eq!(rig.run(Command::LaunchSecret, &secret_buffer(handle, 16)).0, Status::InvalidGuestState);
    let report = pack(&[&words(&[handle, 0]), &DATA.to_le_bytes(), &[0; 16], &words(&[0xd0])]);
    assert_eq!(rig.run(Command::Attestation, &report).0, Status::InvalidGuestState);
    let (short, buffer) = rig.run(Command::LaunchMeasure, &update(handle, DATA, 47));
    assert_eq!((short, word(&buffer, 16)), (Status::InvalidLength, 48));
    measure(&mut rig, handle);
    assert_eq!(rig.run(Command::LaunchSecret, &secret_buffer(handle, 16)).0, Status::Inactive);
    assert_eq!(rig.run(Command::LaunchUpdateData, &data).0, Status::InvalidGuestState);
    assert_eq!(rig.run(Command::LaunchMeasure, &update(handle, DATA, 48)).0, Status::InvalidGuestState);
    assert_eq!(rig.simple(Command::LaunchFinish, handle), Status::Success);
    assert_eq!(rig.simple(Command::LaunchFinish, handle), Status::InvalidGuestState);
    assert_eq!(rig.run(Command::LaunchSecret, &secret_buffer(handle, 16)).0, Status::InvalidGuestState);
}

#[test]
fn handles_of_nobody_are_refused() {
    use Command::*;
    let mut rig = Rig::initialised();
    let handle = rig.start(0);
    assert_eq!(rig.simple(Decommission, handle), Status::Success);
    for nobody in [0, handle, handle + 1, u32::MAX] {
        for command in [
            Activate,
            Deactivate,
            Decommission,
            GuestStatus,
            LaunchUpdateData,
            LaunchUpdateVmsa,
            LaunchMeasure,
            LaunchSecret,
            LaunchFinish,
            Attestation,
        ] {
            let mut buffer = vec![0; command.length()];
            buffer[..4].copy_from_slice(&nobody.to_le_bytes());
            assert_eq!(rig.run(command, &buffer).0, Status::InvalidGuest, "{command:?}");
        }
    }
}

#[test]
fn a_secret_arrives_only_if_it_is_the_owners_for_this_guest() {
    let mut rig = Rig::initialised();
    let owner = Owner::new();
    let (handle, measurement) = measured(&mut rig, &owner);
    for length in [16, 4096, 0x4000] {
        let secret: Vec<u8> = (0..length).map(|byte| (byte % 251) as u8).collect();
        let (header, body) = owner.secret(&secret, &measurement[..32]);
        rig.machine.put(DATA, &header);
        rig.machine.put(DATA + 0x1000, &body);
        assert_eq!(rig.run(Command::LaunchSecret, &secret_buffer(handle, length)).0, Status::Success);
        assert_eq!(rig.machine.get(GUEST, secret.len()), secret);
        assert_eq!(rig.machine.private.pop(), Some((5, GUEST, secret.len())));
    }
    let (header, body) = owner.secret(&[0x77; 64], &measurement[..32]);
    let mut refused = |header: &[u8], body: &[u8], buffer: &[u8], expected: Status| {
        rig.machine.put(DATA, header);
        rig.machine.put(DATA + 0x1000, body);
        assert_eq!(rig.run(Command::LaunchSecret, buffer).0, expected);
        assert!(rig.machine.private.is_empty());
    };
    let buffer = secret_buffer(handle, 64);
    for at in [4, 19, 20, 51] {
        let mut header = header.clone();
        header[at] ^= 1;
        refused(&header, &body, &buffer, Status::BadMeasurement);
    }
    let mut compressed = header.clone();
    compressed[0] = 1;
    refused(&compressed, &body, &buffer, Status::InvalidParam);
    let mut damaged = body.clone();
    damaged[63] ^= 1;
    refused(&header, &damaged, &buffer, Status::BadMeasurement);
    let (for_another, body_for_another) = owner.secret(&[0x77; 64], &[0; 32]);
    refused(&for_another, &body_for_another, &buffer, Status::BadMeasurement);
    for (at, value, expected) in [
        (16, 51u32, Status::InvalidLength),
        (32, 0, Status::InvalidLength),
        (32, 48, Status::InvalidLength),
        (48, 63, Status::InvalidLength),
        (24, GUEST as u32 + 1, Status::InvalidAddress),
        (24, MEMORY as u32 - 32, Status::InvalidAddress),
        (8, MEMORY as u32 - 16, Status::InvalidAddress),
        (40, 8 << 20, Status::InvalidAddress),
    ] {
        let mut buffer = buffer.clone();
        buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
        refused(&header, &body, &buffer, expected);
    }
    refused(&header, &body, &secret_buffer(handle, 0x4010), Status::InvalidLength);
}
