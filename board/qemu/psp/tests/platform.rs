//! The platform's states, its identity and where it is kept: 55766 chapter 5.

mod common;

use caisson_qemu_psp::certificate::{Certificate, LENGTH, Usage};
use caisson_qemu_psp::config::Version;
use caisson_qemu_psp::{Command, Status, crypto};
use common::*;

const CERTIFICATE: u32 = LENGTH as u32;

fn certificates(bytes: &[u8]) -> Vec<Certificate> {
    bytes.chunks(LENGTH).map(|bytes| Certificate(bytes.try_into().expect("a certificate"))).collect()
}

#[test]
fn states_admit_what_the_specification_lists() {
    let flushes = [Command::PekGen, Command::PdhGen, Command::DfFlush];
    let mut rig = Rig::new();
    assert_eq!(rig.status(), (0, 0, 0));
    for command in flushes.into_iter().chain([Command::Shutdown]) {
        assert_eq!(rig.run(command, &[]).0, Status::InvalidPlatformState, "{command:?}");
    }
    assert_eq!(rig.run(Command::PlatformReset, &[]).0, Status::Success);
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    assert_eq!(rig.status(), (1, 0, 0));
    for command in [Command::PlatformReset, Command::Init, Command::InitEx] {
        let status = rig.run(command, &vec![0; command.length()]).0;
        assert_eq!(status, Status::InvalidPlatformState, "{command:?}");
    }
    rig.flush();
    let handle = rig.start(0);
    assert_eq!(rig.status(), (2, 1, 0));
    assert_eq!(rig.run(Command::PekGen, &[]).0, Status::InvalidPlatformState);
    assert_eq!(rig.run(Command::PdhGen, &[]).0, Status::Success);
    assert_eq!(rig.simple(Command::Decommission, handle), Status::Success);
    assert_eq!(rig.status(), (1, 0, 0));
    assert_eq!(rig.run(Command::Shutdown, &[]).0, Status::Success);
    assert_eq!(rig.status(), (0, 0, 0));
}

#[test]
fn every_guest_command_needs_an_initialised_platform() {
    use Command::*;
    for command in [
        Activate,
        Deactivate,
        Decommission,
        GuestStatus,
        LaunchStart,
        LaunchUpdateData,
        LaunchUpdateVmsa,
        LaunchMeasure,
        LaunchSecret,
        LaunchFinish,
        Attestation,
    ] {
        let mut rig = Rig::new();
        assert_eq!(rig.run(command, &vec![0; command.length()]).0, Status::InvalidPlatformState, "{command:?}");
    }
}

#[test]
fn init_checks_the_memory_for_encrypted_state() {
    let mut rig = Rig::new();
    let refused = [
        (2, 8 << 20, 1 << 20, Status::InvalidConfig),
        (1, 8 << 20, (1 << 20) - 1, Status::InvalidLength),
        (1, (8 << 20) + 4096, 1 << 20, Status::InvalidAddress),
        (1, MEMORY, 1 << 20, Status::InvalidAddress),
        (1, u64::MAX - 0xf_ffff, 1 << 20, Status::InvalidAddress),
    ];
    for (flags, at, length, status) in refused {
        assert_eq!(rig.run(Command::Init, &init(flags, at, length)).0, status);
        assert_eq!(rig.status().0, 0);
    }
    assert_eq!(rig.run(Command::Init, &init(1, 8 << 20, 1 << 20)).0, Status::Success);
    assert_eq!(rig.status(), (1, 0, 0x100));
}

#[test]
fn the_identity_survives_a_shutdown_and_not_a_reset() {
    let mut rig = Rig::initialised();
    let first = rig.export();
    assert_eq!(first, rig.export(), "an export changes nothing");
    assert_eq!(rig.run(Command::Shutdown, &[]).0, Status::Success);
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    assert_eq!(first, rig.export());
    assert_eq!(rig.run(Command::Shutdown, &[]).0, Status::Success);
    assert_eq!(rig.run(Command::PlatformReset, &[]).0, Status::Success);
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    let (first, second) = (certificates(&first), certificates(&rig.export()));
    for index in 0..3 {
        assert_ne!(first[index], second[index]);
    }
    assert_eq!(first[3], second[3], "the chip is the same");
}

#[test]
fn init_ex_keeps_the_identity_in_the_hosts_memory() {
    let storage = 4u64 << 20;
    let mut rig = Rig::new();
    rig.machine.put(storage, &[0xff; 0x8000]);
    assert_eq!(rig.run(Command::InitEx, &init_ex(1, storage)).0, Status::Success);
    let first = rig.export();
    assert_eq!(rig.run(Command::PdhGen, &[]).0, Status::Success);
    let second = rig.export();
    assert_ne!(first[..LENGTH], second[..LENGTH]);
    assert_eq!(first[LENGTH..], second[LENGTH..]);
    let kept = rig.machine.get(storage, 0x8000).to_vec();

    // Another processor of the same chip reads it; one of another chip can't, and neither can any when a bit is wrong.
    let mut same = Rig::new();
    same.machine.put(storage, &kept);
    assert_eq!(same.run(Command::InitEx, &init_ex(0, storage)).0, Status::Success);
    assert_eq!(same.export(), second);
    let mut other = Rig::with(caisson_qemu_psp::Config::emulated(4, 2));
    other.machine.put(storage, &kept);
    assert_eq!(other.run(Command::InitEx, &init_ex(0, storage)).0, Status::SecureDataInvalid);
    for at in [0, 8, 20, 36, 2000] {
        let mut rig = Rig::new();
        let mut damaged = kept.clone();
        damaged[at] ^= 1;
        rig.machine.put(storage, &damaged);
        assert_eq!(rig.run(Command::InitEx, &init_ex(0, storage)).0, Status::SecureDataInvalid, "byte {at}");
        assert_eq!(rig.status().0, 0);
    }
}

#[test]
fn init_ex_refuses_wrong_lengths_and_places() {
    let mut rig = Rig::new();
    let good = init_ex(0, 4 << 20);
    for (at, value, status) in [
        (0, 35u32, Status::InvalidLength),
        (32, 0x4000, Status::InvalidLength),
        (24, 0x40_0010, Status::InvalidAddress),
        (24, MEMORY as u32, Status::InvalidAddress),
    ] {
        let mut buffer = good.clone();
        buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert_eq!(rig.run(Command::InitEx, &buffer).0, status, "{at}: {value:#x}");
    }
    // In the memory for encrypted state.
    assert_eq!(rig.run(Command::InitEx, &init_ex(1, (8 << 20) + 4096)).0, Status::InvalidAddress);
    // Neither new nor ours.
    assert_eq!(rig.run(Command::InitEx, &good).0, Status::SecureDataInvalid);
}

#[test]
fn the_chain_holds() {
    let mut rig = Rig::initialised();
    let chain = certificates(&rig.export());
    let usages = [Usage::Pdh, Usage::Pek, Usage::Oca, Usage::Cek];
    let keys: Vec<_> = chain.iter().zip(usages).map(|(one, usage)| one.key(usage).expect("a key")).collect();
    assert!(chain[0].signed_by(Usage::Pek, &keys[1]));
    assert!(chain[1].signed_by(Usage::Oca, &keys[2]));
    assert!(chain[1].signed_by(Usage::Cek, &keys[3]));
    assert!(chain[2].signed_by(Usage::Oca, &keys[2]));
    assert!(!chain[0].signed_by(Usage::Pek, &keys[2]));
    assert!(!chain[3].signed_by(Usage::Cek, &keys[3]), "who vouches for the chip isn't here");
}

#[test]
fn lengths_are_told_when_there_is_too_little_room() {
    let mut rig = Rig::initialised();
    for (command, length) in [(Command::GetId, 128), (Command::PekCsr, CERTIFICATE)] {
        for short in [0, length - 1] {
            let (status, buffer) = rig.run(command, &pack(&[&DATA.to_le_bytes(), &words(&[short])]));
            assert_eq!((status, word(&buffer, 8)), (Status::InvalidLength, length), "{command:?}");
        }
        for at in [MEMORY - 1, 8 << 20, u64::MAX] {
            let (status, _) = rig.run(command, &pack(&[&at.to_le_bytes(), &words(&[length])]));
            assert_eq!(status, Status::InvalidAddress, "{command:?}");
        }
        assert_eq!(rig.run(command, &pack(&[&DATA.to_le_bytes(), &words(&[length])])).0, Status::Success);
    }
    assert_eq!(rig.machine.get(DATA, LENGTH)[8..12], 0x1002u32.to_le_bytes());
    let (status, buffer) = rig.run(Command::PdhCertExport, &[0; 28]);
    assert_eq!((status, word(&buffer, 8), word(&buffer, 24)), (Status::InvalidLength, CERTIFICATE, 3 * CERTIFICATE));
}

/// PEK_CERT_IMPORT's buffer, for certificates at `DATA` one after the other.
fn import() -> Vec<u8> {
    pack(&[
        &DATA.to_le_bytes(),
        &words(&[CERTIFICATE, 0]),
        &(DATA + LENGTH as u64).to_le_bytes(),
        &words(&[CERTIFICATE]),
    ])
}

#[test]
fn an_owner_signs_the_endorsement_key_and_is_the_only_one() {
    let version = Version { major: 0, minor: 0, build: 0 };
    for slot in [0, 1] {
        let mut rig = Rig::initialised();
        let key = crypto::secret(&[0x11; 48]).expect("a scalar");
        let mut oca = Certificate::new(Usage::Oca, &key.public_key(), version);
        oca.sign(0, Usage::Oca, &key);
        let (status, _) = rig.run(Command::PekCsr, &pack(&[&DATA.to_le_bytes(), &words(&[CERTIFICATE])]));
        assert_eq!(status, Status::Success);
        let mut pek = Certificate(rig.machine.get(DATA, LENGTH).try_into().expect("a certificate"));

        rig.machine.put(DATA + LENGTH as u64, &oca.0);
        assert_eq!(rig.run(Command::PekCertImport, &import()).0, Status::BadSignature, "not signed yet");
        pek.sign(slot, Usage::Oca, &key);
        let mut foreign = Certificate::new(Usage::Pek, &key.public_key(), version);
        foreign.sign(slot, Usage::Oca, &key);
        rig.machine.put(DATA, &foreign.0);
        assert_eq!(rig.run(Command::PekCertImport, &import()).0, Status::InvalidCertificate, "another key");
        rig.machine.put(DATA, &pek.0);
        let mut short = import();
        short[8] -= 1;
        assert_eq!(rig.run(Command::PekCertImport, &short).0, Status::InvalidLength);
        rig.machine.put(DATA + LENGTH as u64, &[0; LENGTH]);
        assert_eq!(rig.run(Command::PekCertImport, &import()).0, Status::InvalidCertificate, "no owner");
        assert_eq!(rig.status().2 & 1, 0);
        rig.machine.put(DATA + LENGTH as u64, &oca.0);
        assert_eq!(rig.run(Command::PekCertImport, &import()).0, Status::Success);
        assert_eq!(rig.status().2 & 1, 1);
        assert_eq!(rig.run(Command::PekCertImport, &import()).0, Status::AlreadyOwned);
        let chain = certificates(&rig.export());
        let cek = chain[3].key(Usage::Cek).expect("a key");
        assert_eq!(chain[2], oca);
        assert!(chain[1].signed_by(Usage::Oca, &key.public_key()) && chain[1].signed_by(Usage::Cek, &cek));
        assert_eq!(rig.run(Command::PekGen, &[]).0, Status::Success);
        assert_eq!(rig.status().2 & 1, 0);
    }
}
