//! What the owner sends after the measurement, and the report that anybody may ask for: 55766 sections 6.6 and 6.8
//! (numbers unverified).

use sha2::{Digest, Sha256};

use crate::access::aligned;
use crate::activation::INITIALISED;
use crate::board::Board;
use crate::buffer::{Buffer, field, put};
use crate::certificate::Usage;
use crate::crypto;
use crate::guests::State;
use crate::processor::{Processor, SCRATCH};
use crate::status::Status;
use crate::storage::hardware;

/// Bytes of a packet's header: flags, IV, MAC.
const HEADER: usize = 52;
/// Bytes of a report.
const REPORT: usize = 0xd0;

impl Processor {
    /// LAUNCH_SECRET: handle; header, guest memory and packet, each with address and length. No compression.
    pub(crate) fn launch_secret(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get(buffer.u32(0))?;
        guest.in_state(State::LaunchSecret)?;
        let asid = guest.active()?;
        let (header_at, header_length) = (buffer.spa(8), buffer.u32(16));
        let (guest_at, guest_length) = (buffer.spa(24), buffer.u32(32));
        let (packet_at, packet_length) = (buffer.spa(40), buffer.u32(48));
        let length = guest_length as usize;
        if header_length as usize != HEADER
            || packet_length != guest_length
            || length == 0
            || !length.is_multiple_of(16)
            || length > SCRATCH
        {
            return Err(Status::InvalidLength);
        }
        aligned(guest_at, 16)?;
        let access = self.access();
        access.readable(board, header_at, HEADER as u64)?;
        access.readable(board, packet_at, length as u64)?;
        access.guest(board, guest_at, length as u64)?;
        let mut header = [0; HEADER];
        board.read(header_at, &mut header).map_err(hardware)?;
        let (flags, iv): ([u8; 4], [u8; 16]) = (field(&header, 0), field(&header, 4));
        if flags != [0; 4] {
            return Err(Status::InvalidParam);
        }
        let packet = self.page.get_mut(..length).ok_or(Status::InvalidLength)?;
        board.read(packet_at, packet).map_err(hardware)?;
        let lengths = (guest_length.to_le_bytes(), packet_length.to_le_bytes());
        let signed: [&[u8]; 7] = [&[1], &flags, &iv, &lengths.0, &lengths.1, packet, &guest.measurement];
        if !crypto::hmac_is(&guest.tik, &signed, &header[20..]) {
            return Err(Status::BadMeasurement);
        }
        crypto::counter_mode(&guest.tek, &iv, packet);
        board.write_private(asid, guest_at, packet).map_err(hardware)
    }

    /// ATTESTATION: handle, address, nonce, length. Digest and policy, signed by the endorsement key, as AMD's sev-tool
    /// verifies it: the signature covers what lies before its own fields.
    pub(crate) fn attestation(&self, board: &mut impl Board, buffer: &mut Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get(buffer.u32(0))?;
        if guest.state == State::LaunchUpdate {
            return Err(Status::InvalidGuestState);
        }
        let mut report = [0; REPORT];
        put(&mut report, 0, &buffer.array::<16>(16));
        put(&mut report, 16, &guest.measured);
        put(&mut report, 48, &guest.policy.bits().to_le_bytes());
        let at = self.room(board, buffer, (8, 32), REPORT)?;
        let digest = Sha256::digest(&report[..52]);
        let (r, s) = crypto::sign(&self.initialised()?.pek, &digest).ok_or(Status::HardwareErrorPlatform)?;
        put(&mut report, 52, &(Usage::Pek as u32).to_le_bytes());
        put(&mut report, 56, &2u32.to_le_bytes());
        put(&mut report, 64, &r);
        put(&mut report, 64 + crypto::COMPONENT, &s);
        board.write(at, &report).map_err(hardware)
    }
}
