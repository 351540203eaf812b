//! The bundle, checked before anything of it is used.
//!
//! The build made it, but the kernel trusts no number in it: a bundle that isn't consistent isn't booted.

use caisson_proto::abi::{KERNEL_SLOT, MAX_SERVICES};
use caisson_proto::addr::PAGE_SIZE;
use caisson_proto::bundle::{FileRecord, Header, MAGIC, MAX_RINGS, RingRecord, RingUse, SegmentRecord, ServiceRecord};
use caisson_proto::kernel::{Access, Caps};
use caisson_proto::layout;
use caisson_proto::wire::Field;
use zerocopy::FromBytes;

/// Pages of stack at the most.
pub const MAX_STACK: u32 = 256;
/// Pages of heap at the most: 64 MiB.
pub const MAX_HEAP: u32 = 1 << 14;

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
    /// A segment, the entry point, stack or heap is out of place, or writable and executable.
    Image(usize),
    /// A file isn't in the bundle, or too long.
    File(usize),
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
            check_authority(slot, service, services)?;
            check_image(slot, service, header.pages)?;
        }
        for (number, ring) in rings.iter().enumerate() {
            check_ring(ring, count).ok_or(Fault::Ring(number))?;
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

fn check_authority(slot: usize, service: &ServiceRecord, all: &[ServiceRecord]) -> Result<(), Fault> {
    if Caps::from_bits(service.caps).is_none() || (service.interrupt > 15 && service.interrupt != u16::MAX) {
        return Err(Fault::Authority(slot));
    }
    for target in 0..64 {
        let may = service.may_call >> target & 1 == 1;
        if may && all.get(target).is_none_or(|target| target.rank <= service.rank) {
            return Err(Fault::Downhill(slot));
        }
    }
    Ok(())
}

fn check_image(slot: usize, service: &ServiceRecord, pages: u64) -> Result<(), Fault> {
    let used = service.segments.iter().filter(|segment| segment.pages != 0);
    let sound = used.clone().all(|segment| check_segment(segment, pages));
    let entry = used.clone().any(|segment| {
        let from = segment.page * PAGE_SIZE;
        segment.access & u32::from(Access::EXECUTE.bits()) != 0
            && (from..from + u64::from(segment.pages) * PAGE_SIZE).contains(&service.entry)
    });
    let overlap = used.clone().enumerate().any(|(number, a)| {
        used.clone()
            .skip(number + 1)
            .any(|b| a.page < b.page + u64::from(b.pages) && b.page < a.page + u64::from(a.pages))
    });
    let stack = (1..=MAX_STACK).contains(&service.stack_pages) && service.heap_pages <= MAX_HEAP;
    if !sound || !entry || overlap || !stack {
        return Err(Fault::Image(slot));
    }
    let in_bundle = |file: &FileRecord| {
        let end = file.bundle_page.checked_add(file.bytes.div_ceil(PAGE_SIZE));
        file.bytes <= layout::FILE_STRIDE && end.is_some_and(|end| end <= pages)
    };
    if service.files.iter().all(in_bundle) { Ok(()) } else { Err(Fault::File(slot)) }
}

fn check_segment(segment: &SegmentRecord, pages: u64) -> bool {
    let Some(access) = u8::try_from(segment.access).ok().and_then(Access::from_bits) else { return false };
    let (first, last) = (layout::IMAGE / PAGE_SIZE, layout::INFO / PAGE_SIZE);
    let in_space =
        segment.page >= first && segment.page.checked_add(u64::from(segment.pages)).is_some_and(|end| end <= last);
    let contents = segment.bundle_page.checked_add(u64::from(segment.file_pages));
    in_space
        && access.contains(Access::READ)
        && !access.contains(Access::WRITE | Access::EXECUTE)
        && segment.file_pages <= segment.pages
        && (access.contains(Access::WRITE) || segment.file_pages == segment.pages)
        && contents.is_some_and(|end| end <= pages)
}

fn check_ring(ring: &RingRecord, services: usize) -> Option<()> {
    let producer = ring.producer == KERNEL_SLOT || usize::from(ring.producer) < services;
    let consumer = usize::from(ring.consumer) < services && ring.consumer != ring.producer;
    let numbers = usize::from(ring.producer_number) < MAX_RINGS && usize::from(ring.consumer_number) < MAX_RINGS;
    RingUse::from_word(u64::from(ring.purpose))?;
    (producer && consumer && numbers && ring.channel < 64).then_some(())
}
