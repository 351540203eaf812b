//! Launching SEV and SEV-ES guests: 55766 sections 6.2 to 6.6.

use caisson_proto::addr::Spa;
use sha2::{Digest, Sha256};

use crate::access::aligned;
use crate::activation::INITIALISED;
use crate::board::{Asid, Board, MemoryKey};
use crate::buffer::Buffer;
use crate::certificate::Usage;
use crate::crypto;
use crate::guests::{Guest, Policy, State};
use crate::platform;
use crate::processor::Processor;
use crate::session::{self, Keys};
use crate::status::Status;
use crate::storage::hardware;

/// Memory is encrypted in blocks of this size.
const BLOCK: u64 = 16;
/// LAUNCH_MEASURE writes the measurement and a nonce.
const MEASUREMENT: usize = 48;

impl Processor {
    /// LAUNCH_START: handle, policy; certificate and session of the owner, or neither.
    pub(crate) fn launch_start(&mut self, board: &mut impl Board, buffer: &mut Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        if buffer.u32(0) != 0 {
            // Another guest's key; not offered, and CAVEATS.md says so.
            return Err(Status::Unsupported);
        }
        let policy = Policy::from_bits(buffer.u32(4)).ok_or(Status::PolicyFailure)?;
        let version = self.config.version;
        if policy.contains(Policy::ES) && !self.platform.es || policy.interface() > (version.major, version.minor) {
            return Err(Status::PolicyFailure);
        }
        let handle = self.guests.free_handle()?;
        let keys = self.transport_keys(board, buffer, policy)?;
        let mut key = MemoryKey([0; 32]);
        board.random(&mut key.0);
        self.guests.add(Guest {
            handle,
            policy,
            state: State::LaunchUpdate,
            asid: None,
            key,
            tek: keys.tek,
            tik: keys.tik,
            digest: Sha256::new(),
            measured: [0; 32],
            measurement: [0; 32],
        })?;
        self.platform.state = platform::State::Working;
        buffer.set(0, &handle.to_le_bytes());
        Ok(())
    }

    /// The owner's keys; without an owner, random ones, so that nobody can judge the measurement (unverified).
    fn transport_keys(&mut self, board: &mut impl Board, buffer: &Buffer, policy: Policy) -> Result<Keys, Status> {
        let (certificate, certificate_length) = (buffer.spa(8), buffer.u32(16));
        let (session, session_length) = (buffer.spa(24), buffer.u32(32));
        if certificate_length == 0 && session_length == 0 {
            let mut keys = Keys { tek: [0; 16], tik: [0; 16] };
            board.random(&mut keys.tek);
            board.random(&mut keys.tik);
            return Ok(keys);
        }
        let certificate = self.certificate(board, certificate, certificate_length)?;
        if session_length as usize != session::LENGTH {
            return Err(Status::InvalidLength);
        }
        self.access().readable(board, session, session::LENGTH as u64)?;
        let mut bytes = [0; session::LENGTH];
        board.read(session, &mut bytes).map_err(hardware)?;
        let owner = certificate.key(Usage::Pdh).ok_or(Status::InvalidCertificate)?;
        session::unwrap(&bytes, &self.initialised()?.pdh, &owner, policy)
    }

    /// LAUNCH_UPDATE_DATA: handle, address, length.
    pub(crate) fn launch_update_data(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get(buffer.u32(0))?;
        guest.in_state(State::LaunchUpdate)?;
        let asid = guest.active()?;
        let (at, length) = (buffer.spa(8), u64::from(buffer.u32(16)));
        if length == 0 || !length.is_multiple_of(BLOCK) {
            return Err(Status::InvalidLength);
        }
        aligned(at, BLOCK)?;
        self.measure_and_encrypt(board, buffer.u32(0), asid, at, length)
    }

    /// LAUNCH_UPDATE_VMSA: handle, address, length. For guests without SEV-ES: unsupported (unverified).
    pub(crate) fn launch_update_vmsa(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get(buffer.u32(0))?;
        guest.in_state(State::LaunchUpdate)?;
        if !guest.policy.contains(Policy::ES) {
            return Err(Status::Unsupported);
        }
        let asid = guest.active()?;
        let (at, length) = (buffer.spa(8), u64::from(buffer.u32(16)));
        if length != 4096 {
            return Err(Status::InvalidLength);
        }
        aligned(at, 4096)?;
        self.measure_and_encrypt(board, buffer.u32(0), asid, at, length)
    }

    fn measure_and_encrypt(
        &mut self, board: &mut impl Board, handle: u32, asid: Asid, at: Spa, length: u64,
    ) -> Result<(), Status> {
        self.access().guest(board, at, length)?;
        let guest = self.guests.get_mut(handle)?;
        let mut done = 0;
        while done < length {
            let chunk = &mut self.page[..usize::min(4096, (length - done) as usize)];
            let at = Spa(at.0 + done);
            board.read(at, chunk).map_err(hardware)?;
            guest.digest.update(board.hashed(chunk));
            board.write_private(asid, at, chunk).map_err(hardware)?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    /// LAUNCH_MEASURE: handle, address, length.
    ///
    /// HMAC(TIK; 0x04, major, minor, build, policy, digest, nonce), as the `sev` crate verifies it.
    pub(crate) fn launch_measure(&mut self, board: &mut impl Board, buffer: &mut Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        self.guests.get(buffer.u32(0))?.in_state(State::LaunchUpdate)?;
        let at = self.room(board, buffer, (8, 16), MEASUREMENT)?;
        let guest = self.guests.get_mut(buffer.u32(0))?;
        let mut nonce = [0; 16];
        board.random(&mut nonce);
        let version = self.config.version;
        let measured: [u8; 32] = guest.digest.clone().finalize().into();
        let head = [4, version.major, version.minor, version.build];
        let measurement = crypto::hmac(&guest.tik, &[&head, &guest.policy.bits().to_le_bytes(), &measured, &nonce]);
        board.write(at, &measurement).map_err(hardware)?;
        board.write(Spa(at.0 + 32), &nonce).map_err(hardware)?;
        guest.measured = measured;
        guest.measurement = measurement;
        guest.state = State::LaunchSecret;
        Ok(())
    }

    /// LAUNCH_FINISH: handle. The transport keys are forgotten.
    pub(crate) fn launch_finish(&mut self, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get_mut(buffer.u32(0))?;
        guest.in_state(State::LaunchSecret)?;
        (guest.tek, guest.tik) = ([0; 16], [0; 16]);
        guest.state = State::Running;
        Ok(())
    }
}
