//! The platform of SEV and SEV-ES: 55766 chapter 5.

use caisson_proto::addr::Spa;

use crate::access::aligned;
use crate::board::Board;
use crate::buffer::Buffer;
use crate::identity::{Identity, Owner};
use crate::processor::Processor;
use crate::status::Status;
use crate::storage;

/// The platform's states (55766 section 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum State {
    /// Nothing but INIT and questions.
    #[default]
    Uninit = 0,
    /// No guests.
    Init = 1,
    /// Guests.
    Working = 2,
}

/// What holds from INIT to SHUTDOWN.
#[derive(Default)]
pub struct Platform {
    pub(crate) state: State,
    pub(crate) es: bool,
    pub(crate) donated: Option<(u64, u64)>,
    pub(crate) storage: Option<Spa>,
    pub(crate) identity: Option<Identity>,
}

/// SEV-ES guests may be launched.
const FLAG_ES: u32 = 1;
/// What SEV-ES needs of the host's memory, aligned to its size.
const DONATION: u64 = 1 << 20;
/// The same where SNP is initialised (unverified; Linux gives as much).
const SNP_DONATION: u64 = 2 << 20;
/// What GET_ID writes: ids of two chips, the second of them zero.
const ID: usize = 128;

impl Processor {
    /// Refuses in a state that isn't listed (55766 section 5.1.2).
    pub(crate) fn platform_in(&self, states: &[State]) -> Result<(), Status> {
        if states.contains(&self.platform.state) { Ok(()) } else { Err(Status::InvalidPlatformState) }
    }

    pub(crate) fn initialised(&self) -> Result<&Identity, Status> {
        self.platform.identity.as_ref().ok_or(Status::InvalidPlatformState)
    }

    /// INIT (55766 section 5.2): flags, address and length of memory for SEV-ES.
    pub(crate) fn init(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&[State::Uninit])?;
        let donated = self.donation(board, buffer.u32(0), buffer.spa(8), buffer.u32(16))?;
        let identity = match &self.kept {
            Some(identity) => identity.clone(),
            None => Identity::new(board),
        };
        self.kept = Some(identity.clone());
        self.start(board, donated, None, identity);
        Ok(())
    }

    /// INIT_EX: as INIT, and the identity lies in memory that the host keeps.
    pub(crate) fn init_ex(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&[State::Uninit])?;
        if u64::from(buffer.u32(0)) != 36 || u64::from(buffer.u32(32)) != storage::LENGTH {
            return Err(Status::InvalidLength);
        }
        let donated = self.donation(board, buffer.u32(4), buffer.spa(8), buffer.u32(16))?;
        let at = buffer.spa(24);
        aligned(at, 4096)?;
        self.access().writable(board, at, storage::LENGTH)?;
        if donated.is_some_and(|(first, bytes)| at.0 < first + bytes && first < at.0 + storage::LENGTH) {
            return Err(Status::InvalidAddress);
        }
        let chip = &self.config.chip;
        let identity = match storage::load(board, at, chip)? {
            Some(identity) => identity,
            None => {
                let identity = Identity::new(board);
                storage::store(board, at, chip, &identity)?;
                identity
            }
        };
        self.start(board, donated, Some(at), identity);
        Ok(())
    }

    /// Checks the flags, and the memory for SEV-ES if they ask for it.
    fn donation(&self, board: &mut impl Board, flags: u32, at: Spa, length: u32) -> Result<Option<(u64, u64)>, Status> {
        match flags {
            0 => return Ok(None),
            FLAG_ES => {}
            _ => return Err(Status::InvalidConfig),
        }
        let needed = if self.snp.initialised { SNP_DONATION } else { DONATION };
        if u64::from(length) < needed {
            return Err(Status::InvalidLength);
        }
        aligned(at, needed)?;
        self.access().writable(board, at, u64::from(length))?;
        Ok(Some((at.0, u64::from(length))))
    }

    fn start(&mut self, board: &mut impl Board, donated: Option<(u64, u64)>, storage: Option<Spa>, identity: Identity) {
        // SNP has given up all ASIDs already where it is initialised, and some may be bound.
        if !self.snp.initialised {
            self.asids.give_up_all(board);
        }
        let es = donated.is_some();
        self.platform = Platform { state: State::Init, es, donated, storage, identity: Some(identity) };
    }

    /// SHUTDOWN: all guests are forgotten, and their ASIDs given up.
    pub(crate) fn shutdown(&mut self, board: &mut impl Board) -> Result<(), Status> {
        self.platform_in(&[State::Init, State::Working])?;
        for guest in self.guests.all() {
            if let Some(asid) = guest.asid {
                board.remove_key(asid);
                self.asids.give_up(asid, board);
            }
        }
        self.guests.clear();
        self.platform = Platform::default();
        Ok(())
    }

    /// PLATFORM_RESET: the identity in the chip is forgotten.
    pub(crate) fn platform_reset(&mut self) -> Result<(), Status> {
        self.platform_in(&[State::Uninit])?;
        self.kept = None;
        Ok(())
    }

    /// PLATFORM_STATUS (55766 section 5.6; layout of Linux and the `sev` crate).
    pub(crate) fn platform_status(&self, buffer: &mut Buffer) -> Result<(), Status> {
        let version = self.config.version;
        let identity = self.platform.identity.as_ref();
        let external = identity.is_some_and(|identity| matches!(identity.owner, Owner::External { .. }));
        let flags = u32::from(external) | u32::from(self.platform.es) << 8;
        buffer.set(0, &[version.major, version.minor, self.platform.state as u8]);
        buffer.set(3, &flags.to_le_bytes());
        buffer.set(7, &[version.build]);
        buffer.set(8, &(self.guests.all().len() as u32).to_le_bytes());
        Ok(())
    }

    /// GET_ID.
    pub(crate) fn get_id(&self, board: &mut impl Board, buffer: &mut Buffer) -> Result<(), Status> {
        let mut ids = [0; ID];
        crate::buffer::put(&mut ids, 0, &self.config.chip.id);
        self.answer(board, buffer, (0, 8), &ids)
    }

    /// DF_FLUSH.
    pub(crate) fn df_flush(&mut self, board: &mut impl Board) -> Result<(), Status> {
        self.platform_in(&[State::Init, State::Working])?;
        self.asids.flush(board)
    }
}
