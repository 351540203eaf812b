//! SEV-SNP: its platform state and its guests (56860 chapters 4 and 8).

use bitflags::bitflags;
use caisson_proto::addr::Frame;
use heapless::Vec;

use crate::board::{Asid, MemoryKey};
use crate::config::{Config, Tcb, Version};
use crate::status::Status;

mod activation;
mod cpuid;
mod derive;
mod digest;
mod finish;
mod guests;
mod launch;
mod message;
mod pages;
mod platform;
mod report;
mod request;

pub use digest::{PageType, extend};
pub use message::{HEADER, Kind, Message};
pub use report::{vcek, vcek_point};

/// Guests at a time. A real processor keeps contexts in the host's pages and has no such limit.
pub const MAX_GUESTS: usize = 64;

/// A guest's states (56860 section 4.2, "Guest States"; numbers as AMD's sev-tool has them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It has a context.
    Init = 0,
    /// Its memory is being filled.
    Launch = 1,
    /// Launched.
    Running = 2,
}

bitflags! {
    /// A guest's policy (56860 section 4.3, "Guest Policy"). The interface that it needs is in the low 16 bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Policy: u64 {
        /// The least interface: minor, major.
        const INTERFACE = 0xffff;
        /// Threads may share a core.
        const SMT = 1 << 16;
        /// Reserved, must be one.
        const ONE = 1 << 17;
        /// A migration agent is allowed.
        const MIGRATE_MA = 1 << 18;
        /// Debugging is allowed.
        const DEBUG = 1 << 19;
        /// One socket only.
        const SINGLE_SOCKET = 1 << 20;
    }
}

impl Policy {
    /// The least interface, major and minor.
    pub const fn interface(self) -> (u8, u8) {
        let [minor, major, ..] = self.bits().to_le_bytes();
        (major, minor)
    }
}

/// What the hypervisor vouches for with a signed block at the end of a launch.
#[derive(Clone, Default)]
pub(crate) struct Vouched {
    pub family: [u8; 16],
    pub image: [u8; 16],
    pub svn: u32,
    pub id_key: Option<[u8; 48]>,
    pub author_key: Option<[u8; 48]>,
}

/// A guest.
#[derive(Clone)]
pub(crate) struct Guest {
    pub context: Frame,
    pub state: State,
    pub policy: Policy,
    pub asid: Option<Asid>,
    /// The launch digest.
    pub digest: [u8; 48],
    pub key: MemoryKey,
    /// Keys for messages, one for each VMPL.
    pub message_keys: [[u8; 32]; 4],
    /// Messages so far, requests and responses, for each of them.
    pub messages: [u64; 4],
    /// The root of keys that outlive migration.
    pub root_key: [u8; 32],
    pub workarounds: [u8; 16],
    pub host_data: [u8; 32],
    pub vouched: Vouched,
    pub vcek_disabled: bool,
    pub report_id: [u8; 32],
    pub launch_tcb: Tcb,
}

/// What holds for all SNP guests.
pub(crate) struct Snp {
    pub initialised: bool,
    pub rmp_initialised: bool,
    pub reported: Tcb,
    pub committed: Tcb,
    pub committed_version: Version,
    pub mask_chip_id: bool,
    pub guests: Vec<Guest, MAX_GUESTS>,
}

impl Snp {
    pub fn new(config: &Config) -> Self {
        Self {
            initialised: false,
            rmp_initialised: false,
            reported: config.tcb,
            committed: config.tcb,
            committed_version: config.version,
            mask_chip_id: false,
            guests: Vec::new(),
        }
    }

    /// Refuses unless SNP is initialised.
    pub fn initialised(&self) -> Result<(), Status> {
        if self.initialised { Ok(()) } else { Err(Status::InvalidPlatformState) }
    }
}
