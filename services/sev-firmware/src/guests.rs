//! The guests that the processor knows, or is about to know.

use caisson_proto::abi::MAX_VMS;
use caisson_proto::addr::VmId;
use caisson_proto::kernel::VmKind;

/// How far a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has an ASID, and the processor knows nothing of it.
    Bound,
    /// Its memory is being measured.
    Launching,
    /// Measured; SEV and SEV-ES.
    Measured,
    /// Launched.
    Running,
    /// The processor knows it, and didn't say how far it is.
    Unknown,
}

/// A guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its VM.
    pub vm: VmId,
    /// Its kind.
    pub kind: VmKind,
    /// Its ASID.
    pub asid: u32,
    /// How far it is.
    pub phase: Phase,
}

/// All of them, by their VMs' slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guests([Option<Guest>; MAX_VMS]);

impl Guests {
    pub(crate) const fn new() -> Self {
        Self([None; MAX_VMS])
    }

    /// The guest that is this VM.
    pub fn get(&self, vm: VmId) -> Option<&Guest> {
        self.0.get(vm.index())?.as_ref().filter(|guest| guest.vm == vm)
    }

    pub(crate) fn set_phase(&mut self, vm: VmId, phase: Phase) {
        if let Some(Some(guest)) = self.0.get_mut(vm.index())
            && guest.vm == vm
        {
            guest.phase = phase;
        }
    }

    /// Adds a guest; who was in its VM's slot before.
    pub(crate) fn add(&mut self, guest: Guest) -> Option<Guest> {
        self.0.get_mut(guest.vm.index())?.replace(guest)
    }

    pub(crate) fn remove(&mut self, vm: VmId) {
        if let Some(place) = self.0.get_mut(vm.index())
            && place.is_some_and(|guest| guest.vm == vm)
        {
            *place = None;
        }
    }

    /// All.
    pub fn all(&self) -> impl Iterator<Item = &Guest> {
        self.0.iter().flatten()
    }
}
