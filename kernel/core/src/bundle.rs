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
            let fault = CHECKS.iter().find(|(sound, _)| !sound(service, services, header.pages));
            fault.map_or(Ok(()), |(_, fault)| Err(fault(slot)))?;
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

/// Whether a record, among all, is sound in a bundle of so many pages; and the fault of its slot if not.
type Check = (fn(&ServiceRecord, &[ServiceRecord], u64) -> bool, fn(usize) -> Fault);

/// What is asked of each service.
const CHECKS: [Check; 6] = [
    (
        |it, _, _| Caps::from_bits(it.caps).is_some() && (it.interrupt <= 15 || it.interrupt == u16::MAX),
        Fault::Authority,
    ),
    (calls_go_up, Fault::Downhill),
    (|it, _, pages| used(it).all(|segment| check_segment(segment, pages)), Fault::Image),
    (entry_and_overlap, Fault::Image),
    (|it, _, _| (1..=MAX_STACK).contains(&it.stack_pages) && it.heap_pages <= MAX_HEAP, Fault::Image),
    (|it, _, pages| it.files.iter().all(|file| check_file(file, pages)), Fault::File),
];

fn used(service: &ServiceRecord) -> impl Iterator<Item = &SegmentRecord> {
    service.segments.iter().filter(|segment| segment.pages != 0)
}

fn calls_go_up(service: &ServiceRecord, all: &[ServiceRecord], _: u64) -> bool {
    let mut targets = (0..64).filter(|target| service.may_call >> target & 1 == 1);
    targets.all(|target| all.get(target).is_some_and(|target| target.rank > service.rank))
}

/// The entry is in code, and no two segments overlap.
fn entry_and_overlap(service: &ServiceRecord, _: &[ServiceRecord], _: u64) -> bool {
    let pages = |segment: &SegmentRecord| segment.page..segment.page + u64::from(segment.pages);
    let code = |segment: &SegmentRecord| segment.access & u32::from(Access::EXECUTE.bits()) != 0;
    let overlap = |a: &SegmentRecord, b: &SegmentRecord| pages(a).start < pages(b).end && pages(b).start < pages(a).end;
    used(service).any(|segment| code(segment) && pages(segment).contains(&(service.entry / PAGE_SIZE)))
        && used(service).enumerate().all(|(at, a)| !used(service).skip(at + 1).any(|b| overlap(a, b)))
}

fn check_file(file: &FileRecord, pages: u64) -> bool {
    let end = file.bundle_page.checked_add(file.bytes.div_ceil(PAGE_SIZE));
    file.bytes <= layout::FILE_STRIDE && end.is_some_and(|end| end <= pages)
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

fn ring_is_sound(ring: &RingRecord, services: usize) -> bool {
    let producer = ring.producer == KERNEL_SLOT || usize::from(ring.producer) < services;
    let consumer = usize::from(ring.consumer) < services && ring.consumer != ring.producer;
    let numbers = usize::from(ring.producer_number) < MAX_RINGS && usize::from(ring.consumer_number) < MAX_RINGS;
    producer && consumer && numbers && ring.channel < 64 && RingUse::from_word(ring.purpose.into()).is_some()
}
