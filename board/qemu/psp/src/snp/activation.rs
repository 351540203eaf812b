//! Binding SNP guests to ASIDs (56860 "SNP_ACTIVATE", "SNP_ACTIVATE_EX").

use caisson_proto::addr::Spa;

use super::State;
use crate::asids::{Class, Holder};
use crate::board::Board;
use crate::buffer::{Buffer, field};
use crate::processor::Processor;
use crate::status::Status;
use crate::storage::hardware;

impl Processor {
    /// SNP_ACTIVATE: context, ASID.
    ///
    /// A guest that is active already is refused (unverified); so is one without LAUNCH_START.
    pub(crate) fn snp_activate(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.bind_guest(board, buffer.spa(0), buffer.u32(8))
    }

    /// SNP_ACTIVATE_EX: length, context, ASID, number and address of APIC ids. The ids must be the machine's; which CPUs may
    /// run the guest isn't enforced, and CAVEATS.md says so.
    pub(crate) fn snp_activate_ex(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.snp.initialised()?;
        if buffer.u32(0) != 32 {
            return Err(Status::InvalidLength);
        }
        buffer.reserved(4..8)?;
        let (count, at) = (buffer.u32(20), buffer.spa(24));
        if count == 0 || count > u32::from(self.config.cpus) {
            return Err(Status::InvalidParam);
        }
        self.access().readable(board, at, u64::from(count) * 4)?;
        for index in 0..u64::from(count) {
            let mut id = [0; 4];
            board.read(Spa(at.0 + index * 4), &mut id).map_err(hardware)?;
            if u32::from_le_bytes(field(&id, 0)) >= u32::from(self.config.cpus) {
                return Err(Status::InvalidParam);
            }
        }
        self.bind_guest(board, buffer.spa(8), buffer.u32(16))
    }

    fn bind_guest(&mut self, board: &mut impl Board, context: Spa, asid: u32) -> Result<(), Status> {
        let guest = self.context(board, context)?;
        if guest.state == State::Init {
            return Err(Status::InvalidGuestState);
        }
        if guest.asid.is_some() {
            return Err(Status::Active);
        }
        let key = guest.key.clone();
        let asid = self.asids.check(asid, Class::Encrypted)?;
        self.asids.bindable(asid, board)?;
        self.asids.bind(asid, Holder::Snp(context.0 >> 12));
        board.install_key(asid, &key);
        self.context(board, context)?.asid = Some(asid);
        Ok(())
    }
}
