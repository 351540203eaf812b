//! What carries out what is decided, and why something is refused.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::slots::GmemAddress;

/// What a fault found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The page.
    pub at: GmemAddress,
    /// 512 if the whole 2 MiB around it may be mapped as one, else 1.
    pub pages: u64,
}

/// What carries it out.
pub trait Machine {
    /// Guest frames from `start` to before `end` are about to change.
    ///
    /// # Errors
    /// Why that isn't possible now.
    fn begin(&mut self, vm: VmId, start: Gfn, end: Gfn) -> Result<(), Status>;
    /// Unmaps private pages, or shared ones, and no others.
    fn unmap(&mut self, vm: VmId, gfn: Gfn, pages: u64, private: bool);
    /// No CPU may use translations any more of what was unmapped.
    fn flush(&mut self, vm: VmId);
    /// The change is over.
    fn end(&mut self, vm: VmId);
    /// Puts memory behind a page.
    ///
    /// # Errors
    /// Why there is none.
    fn allocate(&mut self, at: GmemAddress) -> Result<(), Status>;
    /// Clears a page.
    ///
    /// # Errors
    /// Why that isn't possible.
    fn clear(&mut self, at: GmemAddress) -> Result<(), Status>;
    /// Makes a page the guest's. Nothing, if it is.
    ///
    /// # Errors
    /// Why that isn't possible.
    fn prepare(&mut self, vm: VmId, gfn: Gfn, at: GmemAddress) -> Result<(), Status>;
    /// Keeps the page at this address of the caller's where it is.
    ///
    /// # Errors
    /// There is none.
    fn pin(&mut self, source: u64) -> Result<(), Status>;
    /// And lets it go.
    fn unpin(&mut self, source: u64);
    /// Fills a page from a pinned one and makes it the guest's.
    ///
    /// # Errors
    /// Why that isn't possible. Its contents don't count then.
    fn fill(&mut self, vm: VmId, gfn: Gfn, at: GmemAddress, source: u64) -> Result<(), Status>;
    /// Takes the memory behind pages back and flushes it: how many of them can't be taken back.
    fn free(&mut self, at: GmemAddress, pages: u64) -> u64;
}

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
    /// The memory is broken.
    Poisoned,
    /// The guest frame is shared.
    NotPrivate,
    /// The page has contents.
    Exists,
    /// There is no room to note it.
    Full,
    /// Not while pages are allocated.
    Busy,
    /// The machine refused it.
    Machine(Status),
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
            Self::Poisoned => Status::Poisoned,
            Self::NotPrivate => Status::State,
            Self::Exists => Status::Exists,
            Self::Full => Status::Exhausted,
            Self::Busy => Status::Busy,
            Self::Machine(status) => status,
        }
    }
}
