//! The bundle, checked before anything of it is used.
//!
//! The build made it, but the kernel trusts no number that it would use unchecked: a bundle that reaches out of itself,
//! or breaks the rule of ranks, isn't booted. Where an image may lie and what access it may have, the service's space
//! checks when it is mapped.

use crate::prelude::*;
use zerocopy::FromBytes;

/// Why a bundle isn't booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(target_os = "none", derive(defmt::Format))]
pub enum Fault {
    /// It is shorter than it says, or not a bundle of this version.
    Header,
    /// No service, or too many.
    Services,
    /// The record of the service in this slot: a capability or interrupt that doesn't exist.
    Authority(usize),
    /// It may call a service that isn't of a higher rank, or doesn't exist.
    Downhill(usize),
    /// What it sees isn't in the bundle, or can't be.
    Contents(usize),
    /// The ring with this number.
    Ring(usize),
    /// No service can supervise the others, or several can.
    Supervisor,
}

/// A bundle that is consistent.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// Services by slot.
    pub services: &'a [ServiceRecord],
    /// Rings.
    pub rings: &'a [RingRecord],
}

impl<'a> Bundle<'a> {
    /// Checks a bundle.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| Fault::Header)?;
        let pages = bytes.len() as u64 / PAGE_SIZE;
        if header.magic != MAGIC || header.pages == 0 || header.pages > pages {
            return Err(Fault::Header);
        }
        let count = header.services as usize;
        if count == 0 || count > MAX_SERVICES {
            return Err(Fault::Services);
        }
        let (services, rest) = <[ServiceRecord]>::ref_from_prefix_with_elems(rest, count).map_err(|_| Fault::Header)?;
        let (rings, _) =
            <[RingRecord]>::ref_from_prefix_with_elems(rest, header.rings as usize).map_err(|_| Fault::Header)?;
        for (slot, service) in services.iter().enumerate() {
            if Caps::from_bits(service.caps).is_none() || !(service.interrupt <= 15 || service.interrupt == u16::MAX) {
                return Err(Fault::Authority(slot));
            }
            let mut targets = (0..64).filter(|target| service.may_call >> target & 1 == 1);
            if !targets.all(|target| services.get(target).is_some_and(|target| target.rank > service.rank)) {
                return Err(Fault::Downhill(slot));
            }
            if !contents(service).all(|(first, count)| first.checked_add(count).is_some_and(|end| end <= header.pages))
            {
                return Err(Fault::Contents(slot));
            }
        }
        if let Some(number) = rings.iter().position(|ring| !ring_is_sound(ring, count)) {
            return Err(Fault::Ring(number));
        }
        let supervisors = services.iter().filter(|it| it.caps & Caps::SUPERVISE.bits() != 0);
        if supervisors.count() != 1 {
            return Err(Fault::Supervisor);
        }
        Ok(Self { bytes, services, rings })
    }

    /// Slot of the supervisor.
    pub fn supervisor(&self) -> usize {
        self.services.iter().position(|it| it.caps & Caps::SUPERVISE.bits() != 0).unwrap_or(0)
    }
}

/// Where the bundle has what a service sees, in pages: first and count. What can't be has no end.
fn contents(service: &ServiceRecord) -> impl Iterator<Item = (u64, u64)> {
    service.maps.iter().map(|map| match map.own {
        0 if map.access & u32::from(Access::WRITE.bits()) == 0 => (map.bundle_page, map.pages.into()),
        1 if map.file_pages <= map.pages => (map.bundle_page, map.file_pages.into()),
        _ => (map.bundle_page, u64::MAX),
    })
}

fn ring_is_sound(ring: &RingRecord, services: usize) -> bool {
    let producer = ring.producer == KERNEL_SLOT || usize::from(ring.producer) < services;
    let consumer = usize::from(ring.consumer) < services && ring.consumer != ring.producer;
    let numbers = usize::from(ring.producer_number) < MAX_RINGS && usize::from(ring.consumer_number) < MAX_RINGS;
    producer && consumer && numbers
}
