//! The bundle, checked before anything of it is used.
//!
//! The build made it, but the kernel trusts no number that it would use unchecked: a bundle that reaches out of itself,
//! or breaks the rule of ranks, isn't booted. Where an image may lie and what access it may have, the service's space
//! checks when it is mapped.

use caisson_proto::{layout::MAILBOX, mailbox};

use crate::prelude::*;
use zerocopy::FromBytes;

/// Why a bundle isn't booted.
pub type Fault = &'static str;

/// A bundle that is consistent.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// Its header.
    pub header: &'a Header,
    /// Services by slot.
    pub services: &'a [ServiceRecord],
    /// What they see.
    pub maps: &'a [MapRecord],
    /// Slot of the supervisor.
    pub supervisor: usize,
}

impl<'a> Bundle<'a> {
    /// Checks a bundle.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        const SHORT: Fault = "it is shorter than it says, or not a bundle of this version";
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| SHORT)?;
        if header.magic != MAGIC || header.pages == 0 || header.pages > bytes.len() as u64 / PAGE_SIZE {
            return Err(SHORT);
        }
        if header.services == 0 || header.services as usize > MAX_SERVICES {
            return Err("no service, or too many");
        }
        let (services, rest) =
            <[ServiceRecord]>::ref_from_prefix_with_elems(rest, header.services as usize).map_err(|_| SHORT)?;
        let (maps, _) = <[MapRecord]>::ref_from_prefix_with_elems(rest, header.maps as usize).map_err(|_| SHORT)?;
        for service in services {
            if Caps::from_bits(service.caps).is_none() || !(service.interrupt <= 15 || service.interrupt == u16::MAX) {
                return Err("a capability or interrupt that doesn't exist");
            }
            let mut targets = (0..64).filter(|target| service.may_call >> target & 1 == 1);
            if !targets.all(|target| services.get(target).is_some_and(|target| target.rank > service.rank)) {
                return Err("a call to a service that isn't of a higher rank, or doesn't exist");
            }
        }
        if !maps.iter().all(|map| is_sound(map, header, services)) {
            return Err("a mapping of what isn't there, or can't be");
        }
        let mut supervisors = (0..).zip(services).filter(|(_, it)| it.caps & Caps::SUPERVISE.bits() != 0);
        let (Some((supervisor, _)), None) = (supervisors.next(), supervisors.next()) else {
            return Err("no service can supervise the others, or several can");
        };
        Ok(Self { bytes, header, services, maps, supervisor })
    }
}

/// Whether a mapping is of a service that exists, and of what the bundle or its shared pages have.
fn is_sound(map: &MapRecord, header: &Header, services: &[ServiceRecord]) -> bool {
    let (count, most) = match map.kind {
        MapRecord::BUNDLE if map.access & u32::from(Access::WRITE.bits()) == 0 => (map.pages, header.pages),
        MapRecord::OWN if map.file_pages <= map.pages => (map.file_pages, header.pages),
        MapRecord::SHARED => (map.pages, header.shared),
        _ => return false,
    };
    // What the kernel takes for the secure processor's registers is whole, and that processor's.
    let mailbox = map.page != MAILBOX / PAGE_SIZE || map.kind == MapRecord::OWN && map.pages == mailbox::PAGES;
    let silicon = |it: &ServiceRecord| map.page != MAILBOX / PAGE_SIZE || it.caps & Caps::SILICON.bits() != 0;
    services.get(usize::from(map.service)).is_some_and(silicon)
        && mailbox
        && map.first.checked_add(count.into()).is_some_and(|end| end <= most)
}
