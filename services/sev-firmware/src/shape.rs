//! What data a request takes and what it gives, as offsets in a job's data.

use caisson_proto::firmware::{CERTIFICATE, FirmwareCall, PlatformFact, SECRET_HEADER, SESSION, SnpFinish};
use caisson_proto::kernel::VmKind;
use caisson_proto::mailbox;

use crate::area::{DATA, PAGE};

/// Bytes in a job's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub at: usize,
    pub bytes: usize,
}

const fn range(at: usize, bytes: usize) -> Range {
    Range { at, bytes }
}

/// What a request takes and gives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// Parts that the client lends, in order.
    pub takes: [Range; 2],
    /// What the client gets.
    pub gives: Range,
}

impl Shape {
    pub const fn any(&self) -> bool {
        self.takes[0].bytes > 0 || self.gives.bytes > 0
    }
}

/// Bytes of PLATFORM_STATUS's answer.
pub(crate) const PLATFORM_STATUS: usize = 12;
/// Bytes that GUEST_STATUS answers beside the handle.
pub(crate) const GUEST_STATUS: usize = 9;
/// Bytes of SNP_PLATFORM_STATUS's and of SNP_GUEST_STATUS's answer.
pub(crate) const SNP_STATUS: usize = 32;
/// Room for GET_ID's answer.
pub(crate) const ID: usize = PAGE;
/// Bytes of LAUNCH_MEASURE's answer.
pub(crate) const MEASUREMENT: usize = 48;
/// Bytes of ATTESTATION's answer.
pub(crate) const ATTESTATION: usize = 0xd0;
/// Bytes of an ID block.
const ID_BLOCK: usize = 96;

/// The shape of a request about a VM of this kind.
pub(crate) fn of(call: &FirmwareCall, kind: VmKind) -> Shape {
    let (certificate, session) = (CERTIFICATE as usize, SESSION as usize);
    let takes = |first, second| Shape { takes: [range(0, first), range(PAGE, second)], gives: range(0, 0) };
    let gives = |bytes| Shape { gives: range(0, bytes), ..Shape::default() };
    match call {
        FirmwareCall::PlatformRead(read) => gives(match read.fact {
            PlatformFact::Status => PLATFORM_STATUS,
            PlatformFact::SnpStatus => SNP_STATUS,
            PlatformFact::ChipId => ID,
            PlatformFact::PdhExport => PAGE + 3 * certificate,
            PlatformFact::PekCsr => certificate,
        }),
        FirmwareCall::InitEx(_) => Shape { takes: [range(0, DATA), range(0, 0)], gives: range(0, DATA) },
        FirmwareCall::PekCertImport(_) => takes(certificate, certificate),
        FirmwareCall::LaunchStart(start) if start.owner => takes(certificate, session),
        FirmwareCall::LaunchMeasure(_) => gives(MEASUREMENT),
        FirmwareCall::LaunchSecret(secret) => takes(SECRET_HEADER as usize, secret.bytes as usize),
        FirmwareCall::Attestation(_) => gives(ATTESTATION),
        FirmwareCall::GuestStatus(_) if kind == VmKind::SevSnp => gives(SNP_STATUS),
        FirmwareCall::GuestStatus(_) => gives(GUEST_STATUS),
        FirmwareCall::SnpLaunchFinish(finish) if finish.flags.contains(SnpFinish::ID_BLOCK) => takes(ID_BLOCK, PAGE),
        FirmwareCall::SnpGuestRequest(_) => Shape { takes: [range(0, PAGE), range(0, 0)], gives: range(PAGE, PAGE) },
        _ => Shape::default(),
    }
}

/// Pages of data that a command names.
pub(crate) fn data_pages(number: u16, call: Option<&FirmwareCall>) -> usize {
    match number {
        mailbox::INIT_EX => DATA / PAGE,
        mailbox::PDH_CERT_EXPORT => 3,
        mailbox::PEK_CERT_IMPORT | mailbox::SNP_LAUNCH_FINISH | mailbox::SNP_GUEST_REQUEST => 2,
        mailbox::LAUNCH_START => match call {
            Some(FirmwareCall::LaunchStart(start)) if start.owner => 2,
            _ => 0,
        },
        mailbox::LAUNCH_SECRET => match call {
            Some(FirmwareCall::LaunchSecret(secret)) => 1 + (secret.bytes as usize).div_ceil(PAGE),
            _ => 0,
        },
        mailbox::GET_ID
        | mailbox::PEK_CSR
        | mailbox::LAUNCH_MEASURE
        | mailbox::ATTESTATION
        | mailbox::SNP_PLATFORM_STATUS
        | mailbox::SNP_GUEST_STATUS => 1,
        _ => 0,
    }
}
