//! The processor's status codes, and what a client is told for them (55766 section 4.4; from 19 on 56860).

use caisson_proto::abi::Status;

/// Done.
pub const SUCCESS: u16 = 0x00;
/// The ASID is another guest's.
pub const ASID_OWNED: u16 = 0x0c;
/// The ASID isn't of the guest's class.
pub const INVALID_ASID: u16 = 0x0d;
/// A CPU owes a WBINVD.
pub const WBINVD_REQUIRED: u16 = 0x0e;
/// DF_FLUSH is owed.
pub const DFFLUSH_REQUIRED: u16 = 0x0f;

/// What the client is told. A status that no specification has is `State`, too: nobody knows what it means.
pub const fn told(firmware: u16) -> Status {
    match firmware {
        SUCCESS => Status::Ok,
        // Configuration, length, address, parameter, page size.
        0x03 | 0x04 | 0x09 | INVALID_ASID | 0x16 | 0x19 => Status::Range,
        // Certificate, policy, signature, measurement, versions, key.
        0x06 | 0x07 | 0x0a | 0x0b | 0x18 | 0x21 | 0x22 | 0x27 => Status::Denied,
        ASID_OWNED | WBINVD_REQUIRED | DFFLUSH_REQUIRED => Status::Busy,
        // Guest.
        0x10 => Status::NotFound,
        // Command, unsupported.
        0x11 | 0x15 => Status::Unsupported,
        // Resource, sequence numbers.
        0x17 | 0x1d => Status::Exhausted,
        _ => Status::State,
    }
}
