//! The commands' buffers (55766 chapters 5 and 6, 56860 chapter 8). What names a guest or physical memory stays zero: the kernel
//! fills it in. Where data is meant stands its offset.

use caisson_proto::firmware::{CERTIFICATE, FirmwareCall, SECRET_HEADER, SESSION, SnpFinish};
use caisson_proto::mailbox::{self, BUFFER_BYTES};

use crate::area::{DATA, PAGE, put};
use crate::shape::{ATTESTATION, ID, MEASUREMENT};

/// The part of guest memory that a command is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Guest-physical address.
    pub gpa: u64,
    pub bytes: u64,
}

/// A buffer that is being filled.
struct Buffer([u8; BUFFER_BYTES]);

impl Buffer {
    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        put(&mut self.0, at, &value.to_le_bytes());
        self
    }

    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        put(&mut self.0, at, &value.to_le_bytes());
        self
    }

    /// An offset in the data, and 8 bytes on its length.
    fn data(&mut self, at: usize, offset: usize, length: u32) -> &mut Self {
        self.u64(at, offset as u64).u32(at + 8, length)
    }
}

/// The buffer of a command that is rung for a request. Without a request only commands without parameters are rung.
pub(crate) fn buffer(number: u16, call: Option<&FirmwareCall>, piece: Piece) -> [u8; BUFFER_BYTES] {
    let mut buffer = Buffer([0; BUFFER_BYTES]);
    let b = &mut buffer;
    let length = piece.bytes as u32;
    match (number, call) {
        (mailbox::INIT, Some(FirmwareCall::Init(init))) if init.pages > 0 => {
            b.u32(0, 1).u64(8, init.frame.0 << 12).u32(16, (init.pages << 12) as u32)
        }
        (mailbox::INIT_EX, Some(FirmwareCall::InitEx(init))) => {
            if init.pages > 0 {
                b.u32(4, 1).u64(8, init.frame.0 << 12).u32(16, (init.pages << 12) as u32);
            }
            b.u32(0, 36).data(24, 0, DATA as u32)
        }
        (mailbox::PEK_CSR, _) => b.data(0, 0, CERTIFICATE),
        (mailbox::PEK_CERT_IMPORT, _) => b.data(0, 0, CERTIFICATE).data(16, PAGE, CERTIFICATE),
        (mailbox::PDH_CERT_EXPORT, _) => b.data(0, 0, CERTIFICATE).data(16, PAGE, 3 * CERTIFICATE),
        (mailbox::GET_ID, _) => b.data(0, 0, ID as u32),
        (mailbox::LAUNCH_START, Some(FirmwareCall::LaunchStart(start))) => {
            if start.owner {
                b.data(8, 0, CERTIFICATE).data(24, PAGE, SESSION);
            }
            b.u32(4, start.policy)
        }
        (mailbox::LAUNCH_UPDATE_DATA | mailbox::LAUNCH_UPDATE_VMSA, _) => b.u64(8, piece.gpa).u32(16, length),
        (mailbox::LAUNCH_MEASURE, _) => b.data(8, 0, MEASUREMENT as u32),
        (mailbox::LAUNCH_SECRET, _) => {
            b.data(8, 0, SECRET_HEADER).u64(24, piece.gpa).u32(32, length).data(40, PAGE, length)
        }
        (mailbox::ATTESTATION, Some(FirmwareCall::Attestation(report))) => {
            b.u64(8, 0).u64(16, report.nonce_low).u64(24, report.nonce_high).u32(32, ATTESTATION as u32)
        }
        (mailbox::SNP_INIT_EX, Some(FirmwareCall::SnpInit(init))) => b.u32(0, u32::from(init.rmp)),
        (mailbox::SNP_SHUTDOWN_EX, Some(FirmwareCall::SnpShutdownEx(shutdown))) => {
            b.u32(0, 8).u32(4, u32::from(shutdown.flags.bits()))
        }
        (mailbox::SNP_GUEST_REQUEST, _) => b.u64(8, 0).u64(16, PAGE as u64),
        (mailbox::SNP_LAUNCH_START, Some(FirmwareCall::SnpLaunchStart(start))) => {
            b.u64(8, start.policy).u64(32, start.workarounds_low).u64(40, start.workarounds_high)
        }
        (mailbox::SNP_LAUNCH_UPDATE, Some(FirmwareCall::SnpLaunchUpdate(update))) => {
            b.u32(8, (update.page_type as u32) << 1).u64(16, piece.gpa).u32(24, update.permissions << 8)
        }
        (mailbox::SNP_LAUNCH_FINISH, Some(FirmwareCall::SnpLaunchFinish(finish))) => {
            let words = [finish.host_0, finish.host_1, finish.host_2, finish.host_3];
            for (index, word) in words.into_iter().enumerate() {
                b.u64(32 + index * 8, word);
            }
            if finish.flags.contains(SnpFinish::ID_BLOCK) {
                b.u64(16, PAGE as u64);
            }
            b.u64(24, u64::from(finish.flags.bits()))
        }
        (mailbox::SNP_CONFIG, Some(FirmwareCall::SnpConfig(config))) => {
            b.u64(0, config.tcb).u32(8, u32::from(config.mask_chip_id))
        }
        (mailbox::SNP_COMMIT, _) => b.u32(0, 4),
        (mailbox::SNP_PAGE_RECLAIM, _) => b.u64(0, piece.gpa),
        _ => b,
    };
    buffer.0
}
