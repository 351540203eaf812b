//! The secure processor, spoken to by an owner that nobody here wrote: the `sev` crate with OpenSSL.

#[path = "../../../board/qemu/psp/tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use caisson_kds::chain;
use caisson_qemu_psp::certificate::LENGTH;
use caisson_qemu_psp::{Command, Config, Status};
use common::firmware::{FIRMWARE, vectors};
use common::snp::*;
use common::*;
use sev::certs::sev::Verifiable as _;
use sev::certs::sev::sev::{Certificate, Chain};
use sev::certs::snp::Verifiable as _;
use sev::firmware::guest::{AttestationReport, GuestPolicy};
use sev::firmware::host::{Build, Version};
use sev::launch::sev::{HeaderFlags, Measurement, Policy, PolicyFlags, Start};
use sev::measurement::idblock::snp_calculate_id;
use sev::measurement::idblock_types::{FamilyId, ImageId};
use sev::measurement::sev::{
    SevEsMeasurementArgs, SevMeasurementArgs, sev_calc_launch_digest, seves_calc_launch_digest,
};
use sev::measurement::snp::SnpLaunchDigest;
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::VMMType;
use sev::parser::{ByteParser, Decoder, Encoder};
use sev::session::Session;

const GUEST: u64 = 2 << 20;

fn encoded(value: &impl Encoder<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes, ()).expect("bytes");
    bytes
}

fn exported(rig: &mut Rig) -> Chain {
    Chain::decode(&mut rig.export().as_slice(), ()).expect("a chain that the sev crate reads")
}

/// LAUNCH_START with what the owner sends.
fn launch(rig: &mut Rig, policy: u32, start: &Start) -> u32 {
    let certificate = encoded(&start.cert);
    let session = &start.session;
    let session =
        [&session.nonce[..], &session.wrap_tk, &session.wrap_iv, &session.wrap_mac, &session.policy_mac].concat();
    rig.machine.put(DATA, &certificate);
    rig.machine.put(DATA + 0x1000, &session);
    let buffer = pack(&[
        &words(&[0, policy]),
        &DATA.to_le_bytes(),
        &words(&[certificate.len() as u32, 0]),
        &(DATA + 0x1000).to_le_bytes(),
        &words(&[session.len() as u32]),
    ]);
    let (status, buffer) = rig.run(Command::LaunchStart, &buffer);
    assert_eq!(status, Status::Success);
    word(&buffer, 0)
}

fn measurement(rig: &mut Rig, handle: u32) -> Measurement {
    assert_eq!(rig.run(Command::LaunchMeasure, &update(handle, DATA, 48)).0, Status::Success);
    Measurement::decode(&mut rig.machine.get(DATA, 48), ()).expect("a measurement")
}

fn build(config: &Config) -> Build {
    let version = config.version;
    Build { version: Version { major: version.major, minor: version.minor }, build: version.build }
}

#[test]
fn the_platforms_certificates_hold() {
    let mut rig = Rig::initialised();
    let first = exported(&mut rig);
    first.verify().expect("the chain holds");
    assert_eq!(encoded(&first), rig.export());
    assert_eq!(rig.run(Command::PekGen, &[]).0, Status::Success);
    let second = exported(&mut rig);
    second.verify().expect("the new one, too");
    let mixed = Chain { pdh: first.pdh, pek: second.pek, oca: second.oca, cek: second.cek };
    assert!(mixed.verify().is_err(), "another platform's key");
}

#[test]
fn an_owner_of_the_crates_making_is_imported() {
    use sev::certs::sev::Signer as _;
    use sev::certs::sev::Usage;
    let mut rig = Rig::initialised();
    let request = pack(&[&DATA.to_le_bytes(), &words(&[LENGTH as u32])]);
    assert_eq!(rig.run(Command::PekCsr, &request).0, Status::Success);
    let mut pek = Certificate::decode(&mut rig.machine.get(DATA, LENGTH), ()).expect("a certificate");
    let (mut oca, key) = Certificate::generate(sev::certs::sev::sev::Usage::OCA).expect("a key");
    key.sign(&mut oca).expect("signed");
    key.sign(&mut pek).expect("signed");
    rig.machine.put(DATA, &encoded(&pek));
    rig.machine.put(DATA + 0x1000, &encoded(&oca));
    let import = pack(&[
        &DATA.to_le_bytes(),
        &words(&[LENGTH as u32, 0]),
        &(DATA + 0x1000).to_le_bytes(),
        &words(&[LENGTH as u32]),
    ]);
    assert_eq!(rig.run(Command::PekCertImport, &import).0, Status::Success);
    let chain = exported(&mut rig);
    chain.verify().expect("the chain holds");
    assert!(chain.oca == Usage::OCA && encoded(&chain.oca) == encoded(&oca));
}

#[test]
fn a_session_is_understood_and_the_measurement_and_the_secret_are_right() {
    let mut rig = Rig::initialised();
    for (bits, asid) in [(0u32, 5), (1 | 4 | 1 << 16, 1)] {
        // The crate's conversion from a number reads the version in another way than it writes it.
        let minfw = Version { major: (bits >> 16) as u8, minor: (bits >> 24) as u8 };
        let policy = Policy { flags: PolicyFlags::from_bits_truncate(bits as u16), minfw };
        let session = Session::try_from(policy).expect("random keys");
        let start = session.start_pdh(exported(&mut rig).pdh).expect("a session");
        let handle = launch(&mut rig, bits, &start);
        assert_eq!(rig.run(Command::Activate, &words(&[handle, asid])).0, Status::Success);
        let memory: Vec<u8> = (0..40_000u32).map(|byte| (byte / 3) as u8).collect();
        rig.machine.put(GUEST, &memory);
        let mut session = session.measure().expect("a digest");
        for (at, length) in [(0, 16), (4096, 24_576), (0, 4096)] {
            let buffer = update(handle, GUEST + at, length);
            assert_eq!(rig.run(Command::LaunchUpdateData, &buffer).0, Status::Success);
            session.update_data(&memory[at as usize..][..length as usize]).expect("measured");
        }
        let told = measurement(&mut rig, handle);
        let session = session.verify(build(rig.processor.config()), told).expect("the owner agrees");

        let secret = [0x2a; 256];
        let packet = session.secret(HeaderFlags::default(), &secret).expect("a packet");
        let header = [&[0; 4][..], &packet.header.iv, &packet.header.mac].concat();
        rig.machine.put(DATA, &header);
        rig.machine.put(DATA + 0x1000, &packet.ciphertext);
        let buffer = pack(&[
            &words(&[handle, 0]),
            &DATA.to_le_bytes(),
            &words(&[52, 0]),
            &GUEST.to_le_bytes(),
            &words(&[256, 0]),
            &(DATA + 0x1000).to_le_bytes(),
            &words(&[256]),
        ]);
        assert_eq!(rig.run(Command::LaunchSecret, &buffer).0, Status::Success);
        assert_eq!(rig.machine.get(GUEST, 256), secret);
    }
}

#[test]
fn an_owner_sees_what_was_added() {
    let mut rig = Rig::initialised();
    let session = Session::try_from(Policy::default()).expect("random keys");
    let start = session.start_pdh(exported(&mut rig).pdh).expect("a session");
    let handle = launch(&mut rig, 0, &start);
    assert_eq!(rig.run(Command::Activate, &words(&[handle, 5])).0, Status::Success);
    let session = session.measure().expect("a digest");
    assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, GUEST, 16)).0, Status::Success);
    let told = measurement(&mut rig, handle);
    assert!(session.verify(build(rig.processor.config()), told).is_err());
}

#[test]
fn launch_digests_are_those_of_the_crate() {
    let ovmf_file =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../board/qemu/psp/tests/vectors/firmware.bin"));
    assert_eq!(std::fs::read(&ovmf_file).expect("the firmware"), FIRMWARE);
    let (kernel_file, initrd_file, append) = (None, None, None);
    let mut compared = 0;
    for vector in vectors() {
        let digest = match vector.mode {
            "sev" => {
                let (ovmf_file, kernel_file, initrd_file) =
                    (ovmf_file.clone(), kernel_file.clone(), initrd_file.clone());
                sev_calc_launch_digest(SevMeasurementArgs { ovmf_file, kernel_file, initrd_file, append })
            }
            "seves" => seves_calc_launch_digest(SevEsMeasurementArgs {
                vcpus: vector.vcpus as u32,
                vcpu_type: CpuType::EpycV4,
                ovmf_file: ovmf_file.clone(),
                kernel_file: kernel_file.clone(),
                initrd_file: initrd_file.clone(),
                append,
                vmm_type: Some(VMMType::QEMU),
            }),
            _ => continue,
        };
        let digest = digest.expect("a digest");
        assert_eq!(digest[..], vector.digest, "{} {}", vector.mode, vector.vcpus);
        assert_eq!(vector.sev(&mut Rig::initialised()), digest, "{} {}", vector.mode, vector.vcpus);
        compared += 1;
    }
    assert_eq!(compared, 3);
}

/// A P-384 key in a file of its own.
fn key_file(name: &str) -> PathBuf {
    let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::SECP384R1).expect("a curve");
    let key = openssl::ec::EcKey::generate(&group).expect("a key");
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, key.private_key_to_pem().expect("PEM")).expect("written");
    file
}

#[test]
fn blocks_of_the_crates_making_are_accepted_and_reported() {
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    assert_eq!(rig.add(context, 1, 5, 5 << 20, 0x1000), Status::Success);
    // What the digest is, a second guest with the same page tells.
    let twin = Talker::launch_with(&mut rig, 1, 2, &[(5, 0x1000)]).report(&mut rig, 0, &[0; 64]).expect("a report");
    let digest = SnpLaunchDigest::new(twin[0x90..0xc0].try_into().expect("a digest"));
    let block = |digest, policy| {
        snp_calculate_id(
            Some(digest),
            Some(FamilyId::new([0xfa; 16])),
            Some(ImageId::new([0x1a; 16])),
            Some(3),
            Some(GuestPolicy::from(policy)),
            key_file("id.pem"),
            key_file("author.pem"),
        )
        .expect("a block")
    };
    let finish = |rig: &mut Rig, made: &sev::measurement::idblock_types::IdMeasurements, flags: u8| {
        rig.machine.put(DATA, &made.id_block.to_bytes().expect("a block"));
        rig.machine.put(DATA + 0x1000, &made.id_auth.to_bytes().expect("a page"));
        let pages = [DATA.to_le_bytes(), (DATA + 0x1000).to_le_bytes()];
        let buffer = pack(&[&context.to_le_bytes(), &pages[0], &pages[1], &[flags, 0, 0, 0, 0, 0, 0, 0], &[7; 32]]);
        rig.run(Command::SnpLaunchFinish, &buffer).0
    };
    let other = SnpLaunchDigest::new([0; 48]);
    assert_eq!(finish(&mut rig, &block(other, POLICY), 3), Status::BadMeasurement);
    assert_eq!(finish(&mut rig, &block(digest, POLICY | 1 << 20), 3), Status::PolicyFailure);
    let made = block(digest, POLICY);
    assert_eq!(finish(&mut rig, &made, 3), Status::Success);

    let bytes = Talker::new(&rig, context, 5 << 20).report(&mut rig, 0, &[0; 64]).expect("a report");
    let report = AttestationReport::from_bytes(&bytes).expect("a report that the crate reads");
    assert_eq!((report.family_id, report.image_id, report.guest_svn), ([0xfa; 16], [0x1a; 16], 3));
    assert_eq!(SnpLaunchDigest::new(report.id_key_digest).get_hex_ld(), made.id_key_digest.get_hex_ld());
    assert_eq!(SnpLaunchDigest::new(report.author_key_digest).get_hex_ld(), made.auth_key_digest.get_hex_ld());
    assert_eq!((report.host_data, report.key_info.author_key_en()), ([7; 32], true));
    let config = rig.processor.config();
    let ours = chain(&config.chip, config.tcb).expect("a chain");
    let ours = sev::certs::snp::Chain::from_der(&ours.ark, &ours.ask, &ours.vcek).expect("a chain");
    (&ours, &report).verify().expect("OpenSSL agrees");
}
