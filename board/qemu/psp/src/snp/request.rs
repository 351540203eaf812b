//! SNP_GUEST_REQUEST: a guest asks through a host that can neither read nor change what is said.

use super::State;
use super::message::{HEADER, Kind, Message};
use crate::access::aligned;
use crate::board::Board;
use crate::buffer::Buffer;
use crate::processor::Processor;
use crate::status::Status;
use crate::storage::hardware;

impl Processor {
    /// SNP_GUEST_REQUEST: context, request page, response page.
    ///
    /// A sequence number that isn't the next one is INVALID_PARAM (unverified).
    pub(crate) fn snp_guest_request(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let access = self.access();
        let guest = self.context(board, buffer.spa(0))?;
        if guest.state != State::Running {
            return Err(Status::InvalidGuestState);
        }
        let (context, request_at, response_at) = (guest.context, buffer.spa(8), buffer.spa(16));
        aligned(request_at, 4096)?;
        aligned(response_at, 4096)?;
        access.readable(board, request_at, 4096)?;
        access.writable(board, response_at, 4096)?;
        let mut page = [0; 4096];
        board.read(request_at, &mut page).map_err(hardware)?;
        let message = Message::parse(&page).ok_or(Status::InvalidParam)?;
        let guest = self.context(board, buffer.spa(0))?;
        let index = usize::from(message.key);
        let (Some(key), Some(count)) = (guest.message_keys.get(index).copied(), guest.messages.get(index).copied())
        else {
            return Err(Status::InvalidParam);
        };
        let after = count.checked_add(2).ok_or(Status::SequenceOverflow)?;
        if message.sequence != count + 1 {
            return Err(Status::InvalidParam);
        }
        if !message.open(&key, &mut page) {
            return Err(Status::BadMeasurement);
        }
        let guest = guest.clone();
        let payload = &mut page[HEADER..];
        let (kind, length) = match message.kind {
            kind if kind == Kind::ReportRequest as u8 => {
                (Kind::ReportResponse, self.report_request(&guest, &message, payload)?)
            }
            kind if kind == Kind::KeyRequest as u8 => (Kind::KeyResponse, self.key_request(&guest, &message, payload)?),
            _ => return Err(Status::InvalidParam),
        };
        let response = Message { sequence: after, kind: kind as u8, key: message.key, length: length as u16 };
        if !response.seal(&key, &mut page) {
            return Err(Status::HardwareErrorPlatform);
        }
        board.write(response_at, &page).map_err(hardware)?;
        if let Some(guest) = self.snp.guests.iter_mut().find(|guest| guest.context == context) {
            guest.messages[index] = after;
        }
        Ok(())
    }
}
