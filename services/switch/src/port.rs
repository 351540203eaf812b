//! A port: whose it is, what waits for it, and what it did.

use caisson_proto::addr::ServiceId;
use caisson_proto::switch::{Mac, PortRecord, PortReport};

use crate::queue::Queue;

/// A port; unused while its network is 0.
#[derive(Debug)]
pub struct Port {
    network: u8,
    mac: Mac,
    slot: u16,
    /// The life of its vmm that called last. Without one nothing is put into its queue.
    life: Option<ServiceId>,
    /// The vmm knows that something waits.
    told: bool,
    queue: Queue,
    counts: PortReport,
}

const NOTHING: PortReport =
    PortReport { sent: 0, sent_bytes: 0, foreign: 0, received: 0, received_bytes: 0, missed: 0 };

impl Port {
    /// One that isn't used.
    pub const fn new() -> Self {
        let queue = Queue::new();
        Self { network: 0, mac: [0; 6], slot: 0, life: None, told: false, queue, counts: NOTHING }
    }

    /// Gives it to the service in a slot.
    pub fn configure(&mut self, slot: u16, record: &PortRecord) {
        (self.network, self.mac, self.slot) = (record.network, record.mac, slot);
    }

    /// Whether it is nobody's.
    pub fn is_unused(&self) -> bool {
        self.network == 0
    }

    /// Whether it is the one with this address.
    pub fn is(&self, network: u8, mac: &Mac) -> bool {
        self.network == network && self.mac == *mac
    }

    /// Whether it is this service's.
    pub fn is_of(&self, service: ServiceId) -> bool {
        !self.is_unused() && usize::from(self.slot) == service.index()
    }

    /// Its network.
    pub fn network(&self) -> u8 {
        self.network
    }

    /// Its service's slot.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Its vmm calls. One of another life than before finds nothing of its predecessor's.
    pub fn live(&mut self, caller: ServiceId) {
        if self.life != Some(caller) {
            self.told = false;
            self.queue.clear();
            self.counts = NOTHING;
            self.life = Some(caller);
        }
    }

    /// Whether its vmm ever called.
    pub fn is_live(&self) -> bool {
        self.life.is_some()
    }

    /// Counts a frame of its vmm's. False if it isn't from its own address.
    pub fn sends(&mut self, source: &[u8], bytes: usize) -> bool {
        let is_own = source.starts_with(&self.mac);
        self.counts.sent += 1;
        self.counts.sent_bytes += bytes as u64;
        self.counts.foreign += u64::from(!is_own);
        is_own
    }

    /// Puts a frame into its queue, if there is room.
    pub fn put(&mut self, frame: &[u8]) -> bool {
        let taken = self.queue.put(frame);
        self.counts.missed += u64::from(!taken);
        taken
    }

    /// Whether its vmm is to be told that something waits. Says so once, until it has fetched everything.
    pub fn must_ring(&mut self) -> bool {
        self.queue.first().is_some() && !core::mem::replace(&mut self.told, true)
    }

    /// The frame that waits longest.
    pub fn first(&self) -> Option<&[u8]> {
        self.queue.first()
    }

    /// It was fetched.
    pub fn taken(&mut self) {
        self.counts.received += 1;
        self.counts.received_bytes += self.first().map_or(0, |frame| frame.len() as u64);
        self.queue.drop_first();
    }

    /// Its vmm knows how much is left; whether anything is.
    pub fn fetched(&mut self) -> bool {
        self.told = self.first().is_some();
        self.told
    }

    /// What it did.
    pub fn report(&self) -> PortReport {
        self.counts
    }
}
