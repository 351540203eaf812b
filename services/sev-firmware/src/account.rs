//! What sev-firmware believes. All of it but the regions can be had again from the kernel and the processor.

use caisson_proto::firmware::PlatformState;

use crate::asids::Leaked;
use crate::guests::Guests;
use crate::regions::Regions;

/// The account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// SEV's state.
    pub sev: PlatformState,
    /// Whether SNP is initialised.
    pub snp: bool,
    /// Guests.
    pub guests: Guests,
    /// ASIDs that won't be used again.
    pub leaked: Leaked,
    /// Pages that the processor didn't give back.
    pub leaked_pages: u64,
    /// Regions.
    pub regions: Regions,
}

impl Account {
    pub(crate) const fn new() -> Self {
        Self {
            sev: PlatformState::Unknown,
            snp: false,
            guests: Guests::new(),
            leaked: Leaked::new(),
            leaked_pages: 0,
            regions: Regions::new(),
        }
    }
}
