//! Which memory a command may name.

use caisson_proto::addr::{Frame, Spa};

use crate::board::Board;
use crate::rmp::{Entry, Size, State};
use crate::status::Status;

/// The rules that hold now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// SNP is initialised, so the RMP is asked.
    pub snp: bool,
    /// Memory that the host gave to the processor at INIT: first byte and length.
    pub donated: Option<(u64, u64)>,
}

impl Access {
    /// Memory that the processor reads.
    pub fn readable(self, board: &impl Board, at: Spa, length: u64) -> Result<(), Status> {
        let end = at.0.checked_add(length).ok_or(Status::InvalidAddress)?;
        let overlaps = self.donated.is_some_and(|(first, bytes)| at.0 < first.saturating_add(bytes) && first < end);
        if overlaps || !board.is_memory(at, length) { Err(Status::InvalidAddress) } else { Ok(()) }
    }

    /// Memory of the host that the processor writes. With SNP it must be the processor's by the RMP, or not covered
    /// (56860 section 5.3 and the commands' own pages).
    pub fn writable(self, board: &mut impl Board, at: Spa, length: u64) -> Result<(), Status> {
        self.pages(board, at, length, State::Firmware)
    }

    /// Memory of an SEV or SEV-ES guest, which the RMP doesn't know as one (unverified: that the state is checked).
    pub fn guest(self, board: &mut impl Board, at: Spa, length: u64) -> Result<(), Status> {
        self.pages(board, at, length, State::Hypervisor)
    }

    fn pages(self, board: &mut impl Board, at: Spa, length: u64, wanted: State) -> Result<(), Status> {
        self.readable(board, at, length)?;
        if !self.snp || length == 0 {
            return Ok(());
        }
        for frame in at.0 >> 12..=(at.0 + length - 1) >> 12 {
            if covering(board, Frame(frame)).is_some_and(|entry| entry.state() != wanted) {
                return Err(Status::InvalidPageState);
            }
        }
        Ok(())
    }
}

/// What the RMP says of a frame: a page in an assigned one of 2 MiB has no entry of its own (unverified: that commands
/// look there). None if it isn't covered.
pub fn covering(board: &mut impl Board, frame: Frame) -> Option<Entry> {
    let head = Frame(frame.0 & !(Size::Large.pages() - 1));
    let large = board.rmp(head).filter(|entry| entry.assigned && entry.size == Size::Large);
    large.or_else(|| board.rmp(frame))
}

/// Refuses an address that isn't a multiple of `unit`.
pub fn aligned(at: Spa, unit: u64) -> Result<(), Status> {
    if at.0.is_multiple_of(unit) { Ok(()) } else { Err(Status::InvalidAddress) }
}
