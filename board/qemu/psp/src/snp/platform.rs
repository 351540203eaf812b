//! SNP's platform commands: 56860 sections 8.7 to 8.12 and "SNP_CONFIG", "SNP_COMMIT" (numbers unverified).

use caisson_proto::addr::{CpuId, Spa};

use crate::access::aligned;
use crate::board::Board;
use crate::buffer::{Buffer, put};
use crate::config::Tcb;
use crate::platform::State;
use crate::processor::Processor;
use crate::rmp::Entry;
use crate::status::Status;
use crate::storage::hardware;

/// The RMP is to be initialised.
const INIT_RMP: u32 = 1 << 0;
/// A list of ranges that stay the host's for ever is given.
const LIST: u32 = 1 << 1;
/// Ranges in a list: as many as fit into its page.
const MAX_RANGES: u64 = (4096 - 8) / 16;

impl Processor {
    /// SNP_INIT_EX: flags, address of a list of ranges.
    ///
    /// Every CPU must have SYSCFG\[SNPEn\] set and VM_HSAVE_PA clear; which status tells that is unverified.
    pub(crate) fn snp_init_ex(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        if self.snp.initialised || self.platform.state != State::Uninit {
            return Err(Status::InvalidPlatformState);
        }
        let flags = buffer.u32(0);
        if flags & !(INIT_RMP | LIST) != 0 {
            return Err(Status::InvalidParam);
        }
        buffer.reserved(4..8)?;
        buffer.reserved(16..64)?;
        if flags & INIT_RMP == 0 && !self.snp.rmp_initialised {
            return Err(Status::RmpInitRequired);
        }
        for cpu in 0..self.config.cpus {
            let cpu = board.cpu(CpuId(cpu));
            if !cpu.snp_enabled || cpu.host_save != Spa(0) {
                return Err(Status::InvalidConfig);
            }
        }
        if flags & LIST != 0 {
            self.check_ranges(board, buffer.spa(8))?;
        }
        if flags & INIT_RMP != 0 {
            board.init_rmp().map_err(|_| Status::RmpInitFailed)?;
            self.snp.rmp_initialised = true;
        }
        self.snp.initialised = true;
        self.asids.give_up_all(board);
        Ok(())
    }

    /// The ranges must be well-formed. The board's RMP leaves everything to the host until it is given away, so there is
    /// nothing more to do for them.
    fn check_ranges(&self, board: &mut impl Board, at: Spa) -> Result<(), Status> {
        aligned(at, 8)?;
        let access = self.access();
        access.readable(board, at, 8)?;
        let mut head = [0; 8];
        board.read(at, &mut head).map_err(hardware)?;
        let [a, b, c, d, ..] = head;
        let count = u64::from(u32::from_le_bytes([a, b, c, d]));
        if count > MAX_RANGES {
            return Err(Status::InvalidParam);
        }
        for index in 0..count {
            let at = Spa(at.0 + 8 + index * 16);
            access.readable(board, at, 16)?;
            let mut range = [0; 16];
            board.read(at, &mut range).map_err(hardware)?;
            aligned(Spa(u64::from_le_bytes(crate::buffer::field(&range, 0))), 4096)?;
        }
        Ok(())
    }

    /// SNP_SHUTDOWN_EX: length, flags. ASIDs that were given up must have been flushed.
    ///
    /// Contexts of guests that are left become firmware pages (unverified).
    pub(crate) fn snp_shutdown_ex(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.snp.initialised()?;
        if buffer.u32(0) != 8 {
            return Err(Status::InvalidLength);
        }
        if buffer.u32(4) & !3 != 0 {
            return Err(Status::InvalidParam);
        }
        if self.platform.state != State::Uninit {
            return Err(Status::InvalidPlatformState);
        }
        if self.asids.owes_flush() {
            return Err(Status::DfFlushRequired);
        }
        for guest in core::mem::take(&mut self.snp.guests) {
            board.set_rmp(guest.context, Entry::firmware(Default::default())).map_err(hardware)?;
            if let Some(asid) = guest.asid {
                board.remove_key(asid);
                self.asids.give_up(asid, board);
            }
        }
        self.snp.initialised = false;
        Ok(())
    }

    /// SNP_PLATFORM_STATUS: where to write it. In any state.
    pub(crate) fn snp_platform_status(&self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let version = self.config.version;
        let mut status = [0; 32];
        put(&mut status, 0, &[version.major, version.minor]);
        put(&mut status, 2, &[u8::from(self.snp.initialised), u8::from(self.snp.rmp_initialised)]);
        put(&mut status, 4, &u32::from(version.build).to_le_bytes());
        put(&mut status, 8, &u32::from(self.snp.mask_chip_id).to_le_bytes());
        put(&mut status, 12, &(self.snp.guests.len() as u32).to_le_bytes());
        put(&mut status, 16, &self.config.tcb.bytes());
        put(&mut status, 24, &self.snp.reported.bytes());
        let at = buffer.spa(0);
        self.access().writable(board, at, 32)?;
        board.write(at, &status).map_err(hardware)
    }

    /// SNP_CONFIG: the reported security version, which can't be newer than what is committed, and whether reports hide the
    /// chip's id.
    pub(crate) fn snp_config(&mut self, buffer: &Buffer) -> Result<(), Status> {
        self.snp.initialised()?;
        let flags = buffer.u32(8);
        buffer.reserved(12..64)?;
        let reported = Tcb::from_bytes(buffer.array(0)).ok_or(Status::InvalidParam)?;
        if flags & !1 != 0 || !reported.within(self.snp.committed) {
            return Err(Status::InvalidParam);
        }
        self.snp.reported = reported;
        self.snp.mask_chip_id = flags & 1 != 0;
        Ok(())
    }

    /// SNP_COMMIT: what runs becomes what is committed. The firmware here is never replaced, so nothing changes.
    pub(crate) fn snp_commit(&mut self, buffer: &Buffer) -> Result<(), Status> {
        if buffer.u32(0) != 4 {
            return Err(Status::InvalidLength);
        }
        self.snp.committed = self.config.tcb;
        self.snp.committed_version = self.config.version;
        Ok(())
    }

    /// SNP_DF_FLUSH: pays for the ASIDs of all guests, SEV's too.
    pub(crate) fn snp_df_flush(&mut self, board: &mut impl Board) -> Result<(), Status> {
        self.snp.initialised()?;
        self.asids.flush(board)
    }
}
