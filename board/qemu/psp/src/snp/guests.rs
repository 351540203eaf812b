//! Contexts: made, asked about, forgotten (56860 "SNP_GCTX_CREATE", "SNP_GUEST_STATUS", "SNP_DECOMMISSION").

use caisson_proto::addr::{Frame, Spa};

use super::{Guest, Policy, State};
use crate::access::{aligned, covering};
use crate::board::{Board, MemoryKey};
use crate::buffer::{Buffer, put};
use crate::processor::Processor;
use crate::rmp::{self, Entry, Size};
use crate::status::Status;
use crate::storage::hardware;

impl Processor {
    /// The guest whose context is at this address; the address must be a page's, and the page a context by the RMP.
    pub(crate) fn context(&mut self, board: &mut impl Board, at: Spa) -> Result<&mut Guest, Status> {
        self.snp.initialised()?;
        aligned(at, 4096)?;
        self.access().readable(board, at, 4096)?;
        if board.rmp(at.frame()).is_none_or(|entry| entry.state() != rmp::State::Context) {
            return Err(Status::InvalidGuest);
        }
        self.snp.guests.iter_mut().find(|guest| guest.context == at.frame()).ok_or(Status::InvalidGuest)
    }

    /// SNP_GCTX_CREATE: a firmware page. What the page holds afterwards is nobody's business: the guest's state is kept in
    /// the processor, where a real one seals it into the page.
    pub(crate) fn snp_gctx_create(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.snp.initialised()?;
        let at = buffer.spa(0);
        aligned(at, 4096)?;
        self.access().writable(board, at, 4096)?;
        let entry = covering(board, at.frame()).ok_or(Status::InvalidPageState)?;
        if entry.size != Size::Small {
            return Err(Status::InvalidPageSize);
        }
        if self.snp.guests.is_full() {
            return Err(Status::ResourceLimit);
        }
        board.write(at, &[0; 4096]).map_err(hardware)?;
        board.set_rmp(at.frame(), Entry { vmsa: true, ..Entry::firmware(Size::Small) }).map_err(hardware)?;
        self.snp.guests.push(empty(at.frame())).map_err(|_| Status::ResourceLimit)
    }

    /// SNP_DECOMMISSION: the context becomes a firmware page, and the ASID is given up.
    pub(crate) fn snp_decommission(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let guest = self.context(board, buffer.spa(0))?;
        let (context, asid) = (guest.context, guest.asid);
        board.set_rmp(context, Entry::firmware(Size::Small)).map_err(hardware)?;
        if let Some(asid) = asid {
            board.remove_key(asid);
            self.asids.give_up(asid, board);
        }
        self.snp.guests.retain(|guest| guest.context != context);
        Ok(())
    }

    /// SNP_GUEST_STATUS: context, where to write it.
    pub(crate) fn snp_guest_status(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let access = self.access();
        let guest = self.context(board, buffer.spa(0))?;
        let mut status = [0; 32];
        put(&mut status, 0, &guest.policy.bits().to_le_bytes());
        put(&mut status, 8, &u32::from(guest.asid.unwrap_or_default().0).to_le_bytes());
        put(&mut status, 12, &[guest.state as u8]);
        let at = buffer.spa(8);
        access.writable(board, at, 32)?;
        board.write(at, &status).map_err(hardware)
    }
}

fn empty(context: Frame) -> Guest {
    Guest {
        context,
        state: State::Init,
        policy: Policy::empty(),
        asid: None,
        digest: [0; 48],
        key: MemoryKey([0; 32]),
        message_keys: [[0; 32]; 4],
        messages: [0; 4],
        root_key: [0; 32],
        workarounds: [0; 16],
        host_data: [0; 32],
        vouched: Default::default(),
        vcek_disabled: false,
        report_id: [0; 32],
        launch_tcb: Default::default(),
    }
}
