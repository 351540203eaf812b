//! Attestation reports (56860 section 7.3): version 3, as EPYC 9004 writes them.

use p384::SecretKey;
use p384::elliptic_curve::sec1::ToSec1Point;
use sha2::{Digest, Sha384};

use super::{Guest, Message};
use crate::buffer::{field, put};
use crate::config::{Chip, Tcb};
use crate::crypto;
use crate::identity::chip_key;
use crate::processor::Processor;
use crate::status::Status;

/// Bytes of a report.
const REPORT: usize = 0x4a0;
/// What the signature covers, and where it begins.
const SIGNED: usize = 0x2a0;
const REQUEST: u16 = 0x60;
/// A response's head: status and size.
const RESPONSE_HEAD: usize = 0x20;
const VMPLS: u32 = 4;

/// The key that signs reports of this chip at this security version.
pub fn vcek(chip: &Chip, tcb: Tcb) -> SecretKey {
    chip_key(chip, "sev-versioned-chip-endorsement-key", &tcb.bytes())
}

/// Its public part as a point, uncompressed.
pub fn vcek_point(chip: &Chip, tcb: Tcb) -> [u8; 97] {
    field(vcek(chip, tcb).public_key().to_sec1_point(false).as_bytes(), 0)
}

impl Processor {
    /// MSG_REPORT_REQ: 64 bytes of the guest's, a VMPL, which key. The response is in the request's place; its length.
    pub(super) fn report_request(&self, guest: &Guest, message: &Message, payload: &mut [u8]) -> Result<usize, Status> {
        if message.length != REQUEST {
            return Err(Status::InvalidLength);
        }
        let (vmpl, selected) = (u32::from_le_bytes(field(payload, 0x40)), u32::from_le_bytes(field(payload, 0x44)));
        let reserved: [u8; 24] = field(payload, 0x48);
        let data = field(payload, 0);
        payload.fill(0);
        // 0 is the chip's key where no other was loaded, 1 is the chip's key, 2 one that can't be loaded here.
        let status = if vmpl >= VMPLS || vmpl < u32::from(message.key) || selected > 2 || reserved != [0; 24] {
            Status::InvalidParam
        } else if selected == 2 || guest.vcek_disabled {
            Status::InvalidKey
        } else {
            Status::Success
        };
        put(payload, 0, &(status as u32).to_le_bytes());
        if status != Status::Success {
            return Ok(RESPONSE_HEAD);
        }
        let report = self.report(guest, vmpl, &data)?;
        put(payload, 4, &(REPORT as u32).to_le_bytes());
        put(payload, RESPONSE_HEAD, &report);
        Ok(RESPONSE_HEAD + REPORT)
    }

    fn report(&self, guest: &Guest, vmpl: u32, data: &[u8; 64]) -> Result<[u8; REPORT], Status> {
        let (chip, snp) = (&self.config.chip, &self.snp);
        let (current, committed) = (self.config.version, snp.committed_version);
        let vouched = &guest.vouched;
        let mut report = [0; REPORT];
        put(&mut report, 0x00, &3u32.to_le_bytes());
        put(&mut report, 0x04, &vouched.svn.to_le_bytes());
        put(&mut report, 0x08, &guest.policy.bits().to_le_bytes());
        put(&mut report, 0x10, &vouched.family);
        put(&mut report, 0x20, &vouched.image);
        put(&mut report, 0x30, &vmpl.to_le_bytes());
        put(&mut report, 0x34, &1u32.to_le_bytes());
        put(&mut report, 0x38, &self.config.tcb.bytes());
        put(&mut report, 0x40, &u64::from(self.config.smt).to_le_bytes());
        put(&mut report, 0x48, &u32::from(vouched.author_key.is_some()).to_le_bytes());
        put(&mut report, 0x50, data);
        put(&mut report, 0x90, &guest.digest);
        put(&mut report, 0xc0, &guest.host_data);
        put(&mut report, 0xe0, &vouched.id_key.unwrap_or([0; 48]));
        put(&mut report, 0x110, &vouched.author_key.unwrap_or([0; 48]));
        put(&mut report, 0x140, &guest.report_id);
        put(&mut report, 0x160, &[0xff; 32]);
        put(&mut report, 0x180, &snp.reported.bytes());
        put(&mut report, 0x188, &[chip.family, chip.model, chip.stepping]);
        if !snp.mask_chip_id {
            put(&mut report, 0x1a0, &chip.id);
        }
        put(&mut report, 0x1e0, &snp.committed.bytes());
        put(&mut report, 0x1e8, &[current.build, current.minor, current.major, 0]);
        put(&mut report, 0x1ec, &[committed.build, committed.minor, committed.major, 0]);
        put(&mut report, 0x1f0, &guest.launch_tcb.bytes());
        let digest = Sha384::digest(&report[..SIGNED]);
        let (r, s) = crypto::sign(&vcek(chip, snp.reported), &digest).ok_or(Status::HardwareErrorPlatform)?;
        put(&mut report, SIGNED, &r);
        put(&mut report, SIGNED + crypto::COMPONENT, &s);
        Ok(report)
    }
}
