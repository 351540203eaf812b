//! Giving pages back to the host (56860 "SNP_PAGE_RECLAIM").

use caisson_proto::addr::Spa;

use crate::access::aligned;
use crate::board::Board;
use crate::buffer::Buffer;
use crate::processor::Processor;
use crate::rmp::{Entry, Size, State};
use crate::status::Status;
use crate::storage::hardware;

impl Processor {
    /// SNP_PAGE_RECLAIM: address, with the size in bit 0. The page may be changed by the host afterwards: one of the
    /// processor's is in the reclaim state, one that was to be filled is the guest's, not validated.
    pub(crate) fn snp_page_reclaim(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.snp.initialised()?;
        let argument = buffer.u64(0);
        let size = if argument & 1 == 0 { Size::Small } else { Size::Large };
        let at = Spa(argument & !1);
        aligned(at, size.bytes())?;
        self.access().readable(board, at, size.bytes())?;
        let entry = board.rmp(at.frame()).ok_or(Status::InvalidPageState)?;
        match entry.state() {
            State::Firmware | State::Metadata | State::PreGuest | State::PreSwap => {}
            State::Hypervisor | State::Reclaim | State::Context | State::GuestInvalid | State::GuestValid => {
                return Err(Status::InvalidPageState);
            }
        }
        if entry.size != size {
            return Err(Status::InvalidPageSize);
        }
        board.set_rmp(at.frame(), Entry { immutable: false, ..entry }).map_err(hardware)
    }
}
