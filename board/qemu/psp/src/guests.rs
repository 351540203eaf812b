//! SEV and SEV-ES guests: 55766 section 6.1.

use bitflags::bitflags;
use heapless::Vec;
use sha2::Sha256;

use crate::board::{Asid, MemoryKey};
use crate::status::Status;

/// Guests at a time. A real processor keeps contexts in memory of its own, and has a limit too.
pub const MAX_GUESTS: usize = 64;

/// A guest's states (55766 section 6.1.1); those of migration don't occur here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Memory is being measured.
    LaunchUpdate = 1,
    /// Measured; secrets may come.
    LaunchSecret = 2,
    /// Launched.
    Running = 3,
}

bitflags! {
    /// A guest's policy (55766 chapter 3). The interface that it needs is in the upper half: major, minor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Policy: u32 {
        /// No debugging.
        const NO_DEBUG = 1 << 0;
        /// No key sharing.
        const NO_KEY_SHARING = 1 << 1;
        /// SEV-ES.
        const ES = 1 << 2;
        /// No migration.
        const NO_SEND = 1 << 3;
        /// Migration within the owner's domain only.
        const DOMAIN = 1 << 4;
        /// Migration to SEV machines only.
        const SEV = 1 << 5;
        /// The least interface.
        const INTERFACE = 0xffff << 16;
    }
}

impl Policy {
    /// The least interface, major and minor.
    pub const fn interface(self) -> (u8, u8) {
        let [_, _, major, minor] = self.bits().to_le_bytes();
        (major, minor)
    }
}

/// A guest.
#[derive(Clone)]
pub struct Guest {
    /// Its handle, never 0.
    pub handle: u32,
    /// Its policy.
    pub policy: Policy,
    /// Its state.
    pub state: State,
    /// The ASID that it is bound to.
    pub asid: Option<Asid>,
    pub(crate) key: MemoryKey,
    /// Transport encryption key.
    pub(crate) tek: [u8; 16],
    /// Transport integrity key.
    pub(crate) tik: [u8; 16],
    /// What was measured so far.
    pub(crate) digest: Sha256,
    /// The digest, once measured.
    pub(crate) measured: [u8; 32],
    /// What LAUNCH_MEASURE told.
    pub(crate) measurement: [u8; 32],
}

impl Guest {
    /// Its ASID, or the status that says that it has none.
    pub(crate) fn active(&self) -> Result<Asid, Status> {
        self.asid.ok_or(Status::Inactive)
    }

    /// Refuses in another state.
    pub(crate) fn in_state(&self, state: State) -> Result<(), Status> {
        if self.state == state { Ok(()) } else { Err(Status::InvalidGuestState) }
    }
}

/// All guests.
#[derive(Default)]
pub struct Guests {
    table: Vec<Guest, MAX_GUESTS>,
    last: u32,
}

impl Guests {
    /// Those that there are.
    pub fn all(&self) -> &[Guest] {
        &self.table
    }

    /// The guest with this handle.
    pub(crate) fn get(&self, handle: u32) -> Result<&Guest, Status> {
        self.table.iter().find(|guest| guest.handle == handle).ok_or(Status::InvalidGuest)
    }

    /// The guest with this handle, to change it.
    pub(crate) fn get_mut(&mut self, handle: u32) -> Result<&mut Guest, Status> {
        self.table.iter_mut().find(|guest| guest.handle == handle).ok_or(Status::InvalidGuest)
    }

    /// A handle that isn't in use; handles come round only after 2³² launches.
    pub(crate) fn free_handle(&mut self) -> Result<u32, Status> {
        if self.table.is_full() {
            return Err(Status::ResourceLimit);
        }
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && self.get(self.last).is_err() {
                return Ok(self.last);
            }
        }
    }

    /// Adds a guest; there is room, as [`Self::free_handle`] has said.
    pub(crate) fn add(&mut self, guest: Guest) -> Result<(), Status> {
        self.table.push(guest).map_err(|_| Status::ResourceLimit)
    }

    pub(crate) fn remove(&mut self, handle: u32) {
        self.table.retain(|guest| guest.handle != handle);
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
    }
}
