//! Why something is refused.

use caisson_proto::abi::Status;

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Flags that aren't known.
    BadFlags,
    /// Nothing, too much, or no multiple of 4 KiB.
    BadSize,
    /// It is of another VM.
    OtherVm,
    /// An address isn't a multiple of 4 KiB.
    Unaligned,
    /// It ends past the gmem's end, or past the slot's.
    PastEnd,
    /// Some of these pages are bound, or the slot is.
    Bound,
    /// No such gmem.
    NoGmem,
    /// The slot has none.
    NotBound,
    /// The gmem that the slot was bound to is gone.
    Stale,
    /// There is no room to note it.
    Full,
    /// Not while slots show it.
    Busy,
}

impl Error {
    /// What a caller is told.
    pub const fn status(self) -> Status {
        match self {
            Self::BadFlags | Self::BadSize | Self::OtherVm | Self::Unaligned | Self::PastEnd | Self::Bound => {
                Status::Invalid
            }
            Self::NoGmem | Self::NotBound => Status::NotFound,
            Self::Stale => Status::Unbound,
            Self::Full => Status::Exhausted,
            Self::Busy => Status::Busy,
        }
    }
}
