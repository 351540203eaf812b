//! What the supervisor needs: acts on the machine, and what it must know beforehand.

use caisson_proto::abi::{MAX_SERVICES, Status};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{ServiceReport, VmReport};
use caisson_proto::supervisor::Notice;

use crate::burial::Decision;

/// What the supervisor does to the machine.
pub trait Machine {
    /// How the service in a slot fares.
    ///
    /// # Errors
    /// The kernel's.
    fn status(&mut self, slot: u16) -> Result<ServiceReport, Status>;
    /// Starts a dead or unstarted service.
    ///
    /// # Errors
    /// The kernel's: `State` or `Busy` if it isn't possible yet.
    fn restart(&mut self, service: ServiceId) -> Result<ServiceId, Status>;
    /// Ends a running service.
    ///
    /// # Errors
    /// The kernel's: `State` if it doesn't run.
    fn kill(&mut self, service: ServiceId) -> Result<(), Status>;
    /// Ends the supervisor, for its successor.
    fn end_itself(&mut self);
    /// Ends the machine.
    fn power_off(&mut self, verdict: u8);
    /// Milliseconds since boot.
    fn now_ms(&mut self) -> u64;
    /// Asks for `TIMER` in that many milliseconds.
    fn timer_in(&mut self, ms: u64);
    /// The VM in a slot of the kernel's table or the next that has one.
    fn vm(&mut self, slot: u16) -> Option<VmReport>;
    /// Rings memory's `VM_GONE`.
    fn vm_gone(&mut self);
    /// Posts a record to the console; false if there is no room now.
    fn post(&mut self, notice: &Notice) -> bool;
    /// Whether the console has read every record.
    fn all_read(&mut self) -> bool;
    /// Logs what happened.
    fn log(&mut self, event: Event<'_>);
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A service was started, for the first time or again.
    Started(ServiceId),
    /// A service couldn't be started.
    NotStarted(u16, Status),
    /// A service died.
    Died(&'a ServiceReport, Decision),
    /// A service asks for another's end.
    Asked(u16, ServiceId),
    /// This supervisor is the successor of one that died.
    Succeeds,
    /// The secure processor is gone, and so this service ends: a guest's, or the one that spoke for the processor.
    Unprotected(ServiceId),
    /// A service died too often and is given up.
    GivenUp(u16),
    /// Every VM is over and its memory free.
    Settled,
    /// Memory didn't settle in time.
    NotSettled,
    /// The machine ends with this verdict.
    Ending(u8),
}

/// What the supervisor must know of the manifest.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Its own id.
    pub own: ServiceId,
    /// How many services there are.
    pub services: u16,
    /// Which slots are vmms.
    pub is_vmm: [bool; MAX_SERVICES],
    /// The slot of the service that stands in for the secure processor, and of the one that speaks for it.
    pub processor: Option<[u16; 2]>,
}
