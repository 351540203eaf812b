//! The processor: its state, and which command is whose.

use caisson_proto::addr::Spa;

use crate::access::Access;
use crate::asids::Asids;
use crate::board::Board;
use crate::buffer::Buffer;
use crate::command::Command;
use crate::config::Config;
use crate::guests::Guests;
use crate::identity::Identity;
use crate::mailbox::Ring;
use crate::platform::Platform;
use crate::snp::Snp;
use crate::status::Status;
use crate::storage::hardware;

/// Bytes that are worked on at once: the longest secret that LAUNCH_SECRET takes.
pub(crate) const SCRATCH: usize = 0x4000;

/// The secure processor.
pub struct Processor {
    pub(crate) config: Config,
    pub(crate) platform: Platform,
    /// What survives SHUTDOWN in the chip itself.
    pub(crate) kept: Option<Identity>,
    pub(crate) asids: Asids,
    pub(crate) guests: Guests,
    pub(crate) snp: Snp,
    /// What is being worked on: a page, or a secret.
    pub(crate) page: [u8; SCRATCH],
}

impl Processor {
    /// After reset.
    pub fn new(config: Config) -> Self {
        Self {
            platform: Platform::default(),
            kept: None,
            asids: Asids::new(&config),
            guests: Guests::default(),
            snp: Snp::new(&config),
            page: [0; SCRATCH],
            config,
        }
    }

    /// Executes a command. What it writes to memory is written when this returns; a refused one changes nothing, except
    /// that lengths are told where the command tells them.
    pub fn ring(&mut self, board: &mut impl Board, ring: Ring) -> Status {
        match self.execute(board, ring) {
            Ok(()) => Status::Success,
            Err(status) => status,
        }
    }

    /// What it was built with.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// ASIDs and what they owe.
    pub const fn asids(&self) -> &Asids {
        &self.asids
    }

    pub(crate) fn access(&self) -> Access {
        Access { snp: self.snp.initialised, donated: self.platform.donated }
    }

    fn execute(&mut self, board: &mut impl Board, ring: Ring) -> Result<(), Status> {
        let command = Command::from_bits(ring.command).ok_or(Status::InvalidCommand)?;
        let mut buffer = Buffer::new(command.length());
        let length = command.length() as u64;
        if length == 0 {
            return self.dispatch(board, command, &mut buffer);
        }
        self.access().readable(board, ring.buffer, length)?;
        if command.writes_back() {
            self.access().writable(board, ring.buffer, length)?;
        }
        board.read(ring.buffer, buffer.bytes_mut()).map_err(hardware)?;
        let result = self.dispatch(board, command, &mut buffer);
        if command.writes_back() {
            board.write(ring.buffer, buffer.bytes()).map_err(hardware)?;
        }
        result
    }

    fn dispatch<B: Board>(&mut self, board: &mut B, command: Command, buffer: &mut Buffer) -> Result<(), Status> {
        match command {
            Command::Init => self.init(board, buffer),
            Command::InitEx => self.init_ex(board, buffer),
            Command::Shutdown => self.shutdown(board),
            Command::PlatformReset => self.platform_reset(),
            Command::PlatformStatus => self.platform_status(buffer),
            Command::GetId => self.get_id(board, buffer),
            Command::DfFlush => self.df_flush(board),
            Command::PekGen => self.pek_gen(board),
            Command::PekCsr => self.pek_csr(board, buffer),
            Command::PekCertImport => self.pek_cert_import(board, buffer),
            Command::PdhCertExport => self.pdh_cert_export(board, buffer),
            Command::PdhGen => self.pdh_gen(board),
            Command::Activate => self.activate(board, buffer),
            Command::Deactivate => self.deactivate(board, buffer),
            Command::Decommission => self.decommission(buffer),
            Command::GuestStatus => self.guest_status(buffer),
            Command::LaunchStart => self.launch_start(board, buffer),
            Command::LaunchUpdateData => self.launch_update_data(board, buffer),
            Command::LaunchUpdateVmsa => self.launch_update_vmsa(board, buffer),
            Command::LaunchMeasure => self.launch_measure(board, buffer),
            Command::LaunchSecret => self.launch_secret(board, buffer),
            Command::LaunchFinish => self.launch_finish(buffer),
            Command::Attestation => self.attestation(board, buffer),
            Command::SnpInitEx => self.snp_init_ex(board, buffer),
            Command::SnpShutdownEx => self.snp_shutdown_ex(board, buffer),
            Command::SnpPlatformStatus => self.snp_platform_status(board, buffer),
            Command::SnpConfig => self.snp_config(buffer),
            Command::SnpCommit => self.snp_commit(buffer),
            Command::SnpDfFlush => self.snp_df_flush(board),
            Command::SnpGctxCreate => self.snp_gctx_create(board, buffer),
            Command::SnpDecommission => self.snp_decommission(board, buffer),
            Command::SnpActivate => self.snp_activate(board, buffer),
            Command::SnpActivateEx => self.snp_activate_ex(board, buffer),
            Command::SnpGuestStatus => self.snp_guest_status(board, buffer),
            Command::SnpLaunchStart => self.snp_launch_start(board, buffer),
            Command::SnpLaunchUpdate => self.snp_launch_update(board, buffer),
            Command::SnpLaunchFinish => self.snp_launch_finish(board, buffer),
            Command::SnpGuestRequest => self.snp_guest_request(board, buffer),
            Command::SnpPageReclaim => self.snp_page_reclaim(board, buffer),
        }
    }

    /// Writes an answer whose length the caller tells at `length_at`: too short is refused, and in either case the length
    /// that it takes is written there (55766, each command that answers into memory).
    pub(crate) fn answer(
        &self, board: &mut impl Board, buffer: &mut Buffer, (address_at, length_at): (usize, usize), bytes: &[u8],
    ) -> Result<(), Status> {
        let at = self.room(board, buffer, (address_at, length_at), bytes.len())?;
        board.write(at, bytes).map_err(hardware)
    }

    /// Checks that there is room for such an answer, so that nothing can fail after it.
    pub(crate) fn room(
        &self, board: &mut impl Board, buffer: &mut Buffer, (address_at, length_at): (usize, usize), needed: usize,
    ) -> Result<Spa, Status> {
        let (at, length) = (buffer.spa(address_at), buffer.u32(length_at));
        buffer.set(length_at, &(needed as u32).to_le_bytes());
        if (length as usize) < needed {
            return Err(Status::InvalidLength);
        }
        self.access().writable(board, at, needed as u64)?;
        Ok(at)
    }
}
