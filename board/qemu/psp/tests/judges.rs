//! Judged by programs that nobody here wrote: PyPI's `sev-snp-measure`, by the digests in `vectors/`, and the `sev` crate.

mod common;

use std::path::PathBuf;

use caisson_kds::chain;
use caisson_qemu_psp::{Command, Config};
use common::firmware::{FIRMWARE, vectors};
use common::snp::*;
use common::*;
use sev::certs::snp::builtin::{genoa, milan};
use sev::certs::snp::{Certificate, Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};
use sev::parser::ByteParser;

fn firmware_file() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/firmware.bin"))
}

fn parsed(report: &[u8]) -> AttestationReport {
    AttestationReport::from_bytes(report).expect("a report that the sev crate reads")
}

/// Our chain for this rig's chip.
fn our_chain(config: &Config) -> Chain {
    let ours = chain(&config.chip, config.tcb).expect("a chain");
    Chain::from_der(&ours.ark, &ours.ask, &ours.vcek).expect("a chain that the sev crate reads")
}

#[test]
fn launch_digests_are_those_of_sev_snp_measure() {
    let mut rig = Rig::initialised();
    for vector in vectors().into_iter().filter(|vector| vector.mode != "snp") {
        assert_eq!(vector.sev(&mut rig), vector.digest, "{} {}", vector.mode, vector.vcpus);
        assert_eq!(rig.run(Command::Shutdown, &[]).0 as u16, 0);
        assert_eq!(rig.run(Command::Init, &init(1, 8 << 20, 1 << 20)).0 as u16, 0);
        rig.flush();
    }
    let mut rig = Rig::snp();
    for (index, vector) in vectors().into_iter().filter(|vector| vector.mode == "snp").enumerate() {
        let mut guest = vector.snp(&mut rig, index as u64, index as u16 + 1);
        let report = guest.report(&mut rig, 0, &[0; 64]).expect("a report");
        assert_eq!(report[0x90..0xc0], vector.digest, "{} {}", vector.hypervisor, vector.vcpus);
    }
}

#[test]
fn launch_digests_are_those_of_the_sev_crate() {
    // Those of SEV and SEV-ES are compared in tools/judges: the crate has them with OpenSSL only.
    for vector in vectors().into_iter().filter(|vector| vector.mode == "snp" && vector.hypervisor == "QEMU") {
        let arguments = SnpMeasurementArgs {
            vcpus: vector.vcpus as u32,
            vcpu_type: CpuType::EpycV4,
            ovmf_file: firmware_file(),
            guest_features: GuestFeatures(1),
            kernel_file: None,
            initrd_file: None,
            append: None,
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        };
        let digest: Vec<u8> = snp_calc_launch_digest(arguments).expect("a digest").try_into().expect("bytes");
        assert_eq!(digest, vector.digest, "{} vCPUs", vector.vcpus);
    }
}

#[test]
fn reports_verify_against_our_chain_and_no_other() {
    let mut rig = Rig::snp();
    let mut guest = Talker::launch(&mut rig, 0, 1);
    let bytes = guest.report(&mut rig, 0, &[0x5c; 64]).expect("a report");
    let report = parsed(&bytes);
    let config = rig.processor.config();
    let (build, minor, major) = (config.version.build, config.version.minor, config.version.major);
    assert_eq!((report.current.build, report.current.minor, report.current.major), (build, minor, major));
    assert_eq!((report.chip_id, report.report_data, report.vmpl), (config.chip.id, [0x5c; 64], 0));
    assert_eq!((report.reported_tcb.bootloader, report.reported_tcb.microcode), (1, 1));
    assert_eq!((report.cpuid_fam_id, report.cpuid_mod_id, report.cpuid_step), (Some(0x19), Some(0x11), Some(1)));
    assert!(report.policy.smt_allowed() && !report.policy.debug_allowed());
    assert_eq!(report.to_bytes().expect("bytes")[..], bytes, "the crate writes what it read");

    let ours = our_chain(config);
    ours.verify().expect("our chain holds");
    (&ours, &report).verify().expect("our chain vouches for our report");

    // Another chip's key, and AMD's own chains.
    let other = our_chain(&Config::emulated(4, 2));
    assert!((&other, &report).verify().is_err());
    let forged = |ark: Certificate, ask: Certificate| Chain::from((ask, ark, ours.vek.clone()));
    let genuine = [
        forged(genoa::ark().expect("a root"), genoa::ask().expect("a key")),
        forged(milan::ark().expect("a root"), milan::ask().expect("a key")),
    ];
    for chain in genuine {
        chain.ca.verify().expect("AMD's own certificates hold");
        assert!(chain.verify().is_err(), "AMD didn't sign our chip's key");
        assert!((&chain, &report).verify().is_err());
    }

    // A report with any bit changed.
    for at in [0x08, 0x50, 0x90, 0xc0, 0x180, 0x1a0, 0x1f0, 0x29f, 0x2a0, 0x2e8] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        // Some bytes are reserved, and then it isn't even read.
        let accepted = AttestationReport::from_bytes(&bytes).is_ok_and(|report| (&ours, &report).verify().is_ok());
        assert!(!accepted, "byte {at:#x}");
    }
}

#[test]
fn the_key_follows_the_reported_version() {
    let mut rig = Rig::snp();
    let mut guest = Talker::launch(&mut rig, 0, 1);
    let older = pack(&[&[1, 0, 0, 0, 0, 0, 0, 1], &[0; 56]]);
    assert_eq!(rig.run(Command::SnpConfig, &older).0 as u16, 0);
    let report = parsed(&guest.report(&mut rig, 0, &[0; 64]).expect("a report"));
    let config = rig.processor.config().clone();
    assert!((&our_chain(&config), &report).verify().is_err(), "that chain is for the version that runs");
    let mut then = config;
    then.tcb.snp = 0;
    (&our_chain(&then), &report).verify().expect("the chain of the reported version vouches for it");
}

#[test]
fn a_hidden_chip_isnt_told() {
    let mut rig = Rig::snp();
    let mut guest = Talker::launch(&mut rig, 0, 1);
    let hide = pack(&[&[1, 0, 0, 0, 0, 0, 1, 1], &words(&[1]), &[0; 52]]);
    assert_eq!(rig.run(Command::SnpConfig, &hide).0 as u16, 0);
    let report = parsed(&guest.report(&mut rig, 0, &[0; 64]).expect("a report"));
    assert_eq!(report.chip_id, [0; 64]);
    (&our_chain(rig.processor.config()), &report).verify().expect("signed all the same");
}

#[test]
fn the_firmware_is_what_both_judges_were_shown() {
    assert_eq!(std::fs::read(firmware_file()).expect("the file"), FIRMWARE);
}
