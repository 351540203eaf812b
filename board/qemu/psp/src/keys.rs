//! The commands about the platform's keys: 55766 sections 5.7 to 5.12.

use caisson_proto::addr::Spa;

use crate::board::Board;
use crate::buffer::Buffer;
use crate::certificate::{Certificate, LENGTH, Usage};
use crate::identity::{Identity, Owner, fresh};
use crate::platform::State;
use crate::processor::Processor;
use crate::status::Status;
use crate::storage::{self, hardware};

impl Processor {
    /// PEK_GEN: the platform owns itself again, with new keys.
    pub(crate) fn pek_gen(&mut self, board: &mut impl Board) -> Result<(), Status> {
        self.platform_in(&[State::Init])?;
        let identity = Identity::new(board);
        self.keep(board, identity)
    }

    /// PDH_GEN.
    pub(crate) fn pdh_gen(&mut self, board: &mut impl Board) -> Result<(), Status> {
        self.platform_in(&[State::Init, State::Working])?;
        let identity = Identity { pdh: fresh(board), ..self.initialised()?.clone() };
        self.keep(board, identity)
    }

    /// PEK_CSR: the endorsement key's certificate without signatures.
    pub(crate) fn pek_csr(&self, board: &mut impl Board, buffer: &mut Buffer) -> Result<(), Status> {
        self.platform_in(&[State::Init])?;
        let request = self.initialised()?.request(self.config.version);
        self.answer(board, buffer, (0, 8), &request.0)
    }

    /// PDH_CERT_EXPORT: the key's certificate, and the chain endorsement key, owner, chip.
    pub(crate) fn pdh_cert_export(&self, board: &mut impl Board, buffer: &mut Buffer) -> Result<(), Status> {
        self.platform_in(&[State::Init, State::Working])?;
        let identity = self.initialised()?;
        let one = self.room(board, buffer, (0, 8), LENGTH);
        let three = self.room(board, buffer, (16, 24), 3 * LENGTH);
        let (at, mut chain_at) = (one?, three?);
        let [pdh, chain @ ..] = identity.certificates(&self.config.chip, self.config.version);
        board.write(at, &pdh.0).map_err(hardware)?;
        for certificate in chain {
            board.write(chain_at, &certificate.0).map_err(hardware)?;
            chain_at = Spa(chain_at.0 + LENGTH as u64);
        }
        Ok(())
    }

    /// PEK_CERT_IMPORT: somebody else becomes the owner.
    pub(crate) fn pek_cert_import(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&[State::Init])?;
        let identity = self.initialised()?;
        if matches!(identity.owner, Owner::External { .. }) {
            return Err(Status::AlreadyOwned);
        }
        let pek = self.certificate(board, buffer.spa(0), buffer.u32(8))?;
        let oca = self.certificate(board, buffer.spa(16), buffer.u32(24))?;
        let owner = oca.key(Usage::Oca).ok_or(Status::InvalidCertificate)?;
        if pek.key(Usage::Pek) != Some(identity.pek.public_key()) {
            return Err(Status::InvalidCertificate);
        }
        if !oca.signed_by(Usage::Oca, &owner) || !pek.signed_by(Usage::Oca, &owner) {
            return Err(Status::BadSignature);
        }
        // That there is a new Diffie-Hellman key is unverified.
        let identity = Identity { owner: Owner::External { oca, pek }, pek: identity.pek.clone(), pdh: fresh(board) };
        self.keep(board, identity)
    }

    /// A certificate in the host's memory.
    pub(crate) fn certificate(&self, board: &mut impl Board, at: Spa, length: u32) -> Result<Certificate, Status> {
        if length as usize != LENGTH {
            return Err(Status::InvalidLength);
        }
        self.access().readable(board, at, LENGTH as u64)?;
        let mut bytes = [0; LENGTH];
        board.read(at, &mut bytes).map_err(hardware)?;
        Ok(Certificate(bytes))
    }

    /// Keeps an identity where this platform keeps it.
    fn keep(&mut self, board: &mut impl Board, identity: Identity) -> Result<(), Status> {
        match self.platform.storage {
            Some(at) => storage::store(board, at, &self.config.chip, &identity)?,
            None => self.kept = Some(identity.clone()),
        }
        self.platform.identity = Some(identity);
        Ok(())
    }
}
