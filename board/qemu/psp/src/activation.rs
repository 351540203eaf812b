//! Binding guests to ASIDs, and forgetting them: 55766 sections 6.19 to 6.22 (numbers unverified).

use crate::asids::{Class, Holder};
use crate::board::Board;
use crate::buffer::Buffer;
use crate::guests::Policy;
use crate::platform::State;
use crate::processor::Processor;
use crate::status::Status;

/// What every command about a guest needs.
pub(crate) const INITIALISED: [State; 2] = [State::Init, State::Working];

impl Processor {
    /// ACTIVATE: handle, ASID.
    ///
    /// Which of the two flushes is named first where both are missing is unverified: WBINVD.
    pub(crate) fn activate(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get_mut(buffer.u32(0))?;
        if guest.asid.is_some() {
            return Err(Status::Active);
        }
        let class = if guest.policy.contains(Policy::ES) { Class::Encrypted } else { Class::Sev };
        let asid = self.asids.check(buffer.u32(4), class)?;
        self.asids.bindable(asid, board)?;
        self.asids.bind(asid, Holder::Sev(guest.handle));
        board.install_key(asid, &guest.key);
        guest.asid = Some(asid);
        Ok(())
    }

    /// DEACTIVATE: handle. Of a guest without an ASID it is a success without effect (unverified).
    pub(crate) fn deactivate(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get_mut(buffer.u32(0))?;
        if let Some(asid) = guest.asid.take() {
            board.remove_key(asid);
            self.asids.give_up(asid, board);
        }
        Ok(())
    }

    /// DECOMMISSION: handle. The guest must have been deactivated.
    pub(crate) fn decommission(&mut self, buffer: &Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get(buffer.u32(0))?;
        if guest.asid.is_some() {
            return Err(Status::Active);
        }
        let handle = guest.handle;
        self.guests.remove(handle);
        if self.guests.all().is_empty() {
            self.platform.state = State::Init;
        }
        Ok(())
    }

    /// GUEST_STATUS: handle; policy, ASID (0 for none) and state come back.
    pub(crate) fn guest_status(&self, buffer: &mut Buffer) -> Result<(), Status> {
        self.platform_in(&INITIALISED)?;
        let guest = self.guests.get(buffer.u32(0))?;
        buffer.set(4, &guest.policy.bits().to_le_bytes());
        buffer.set(8, &u32::from(guest.asid.unwrap_or_default().0).to_le_bytes());
        buffer.set(12, &[guest.state as u8]);
        Ok(())
    }
}
