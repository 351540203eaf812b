//! The services' address spaces: built once at boot from the bundle, made pristine at each start.
//!
//! What a service may write is the kernel's memory, lent to it for good; so a service can be started again although
//! memory itself is dead. Everything that isn't written is mapped straight from the bundle.

use core::sync::atomic::{AtomicBool, Ordering};

use caisson_core::bundle::Bundle;
use caisson_hw::space::Space;
use caisson_hw::{Early, kmap};
use caisson_proto::abi::{KERNEL_SLOT, MAX_SERVICES, Status};
use caisson_proto::addr::{Frame, PAGE_SIZE, VPage};
use caisson_proto::bundle::{MAX_SEGMENTS, PortRange, RingInfo, ServiceInfo, ServiceRecord};
use caisson_proto::kernel::Access;
use caisson_proto::layout;
use spin::Once;
use zerocopy::{FromZeros, IntoBytes};

/// Pages that a service writes, and what they hold when it starts.
#[derive(Clone, Copy, Debug)]
struct Writable {
    first: Frame,
    pages: u64,
    /// First page of the contents in the bundle, and how many.
    contents: (Frame, u64),
}

/// A service's space and how to make it pristine.
#[derive(Debug)]
pub struct Home {
    /// The space.
    pub space: Space,
    /// Its I/O ports.
    pub ports: [PortRange; 4],
    entry: u64,
    info: Frame,
    writable: heapless::Vec<Writable, { MAX_SEGMENTS + 2 }>,
    rings: heapless::Vec<Frame, 64>,
    started: AtomicBool,
}

static HOMES: [Once<Home>; MAX_SERVICES] = [const { Once::new() }; MAX_SERVICES];

/// The home of the service in a slot.
#[inline]
pub fn home(slot: usize) -> Option<&'static Home> {
    HOMES.get(slot)?.get()
}

const READ: Access = Access::READ;
const WRITE: Access = Access::READ.union(Access::WRITE);

/// Builds every service's space.
///
/// # Errors
/// [`Status::Exhausted`] if memory ends; others mean that the bundle has two things at one place.
pub fn build(bundle: &Bundle<'_>, bundle_first: Frame, early: &mut Early, cpus: u32) -> Result<(), Status> {
    let mut ring_frames = heapless::Vec::<Frame, 512>::new();
    for _ in bundle.rings {
        let frame = early.alloc_frame().ok_or(Status::Exhausted)?;
        ring_frames.push(frame).map_err(|_| Status::Exhausted)?;
    }
    let mut template = ServiceInfo::new_zeroed();
    template.cpus = cpus;
    template.tsc_khz = caisson_hw::clock::tsc_khz();
    template.boot_tsc = caisson_hw::clock::boot_tsc();
    template.services = bundle.services.len() as u32;
    for (slot, service) in bundle.services.iter().enumerate() {
        if let (Some(name), Some(is_vmm)) = (template.names.get_mut(slot), template.is_vmm.get_mut(slot)) {
            *name = service.name;
            *is_vmm = u8::from(service.is_vmm == 1);
        }
    }
    for (slot, service) in bundle.services.iter().enumerate() {
        let space = Space::new(early).ok_or(Status::Exhausted)?;
        let mut builder = Builder { early, bundle_first, home: empty(space, service) };
        builder.image(service)?;
        let mut info = template;
        info.heap_bytes = u64::from(service.heap_pages) * PAGE_SIZE;
        builder.files(service, &mut info)?;
        builder.rings(bundle, slot, &ring_frames, &mut info)?;
        let home = builder.finish(&info)?;
        HOMES.get(slot).ok_or(Status::Range)?.call_once(|| home);
    }
    for (ring, frame) in bundle.rings.iter().zip(&ring_frames) {
        if ring.producer == KERNEL_SLOT {
            caisson_hw::log::attach(*frame);
            crate::statics::set_log_reader(ring.consumer, ring.consumer_number);
        }
    }
    Ok(())
}

fn empty(space: Space, service: &ServiceRecord) -> Home {
    Home {
        space,
        ports: service.ports,
        entry: service.entry,
        info: Frame(0),
        writable: heapless::Vec::new(),
        rings: heapless::Vec::new(),
        started: AtomicBool::new(false),
    }
}

struct Builder<'a> {
    early: &'a mut Early,
    bundle_first: Frame,
    home: Home,
}

impl Builder<'_> {
    fn in_bundle(&self, page: u64) -> Frame {
        Frame(self.bundle_first.0 + page)
    }

    /// Maps frames page by page at a byte address.
    fn map(&mut self, address: u64, first: Frame, pages: u64, access: Access) -> Result<(), Status> {
        for page in 0..pages {
            let at = VPage(address / PAGE_SIZE + page);
            self.home.space.map(at, Frame(first.0 + page), 1, access, self.early)?;
        }
        Ok(())
    }

    /// Maps memory of its own that the service writes.
    fn own(&mut self, address: u64, pages: u64, contents: (Frame, u64)) -> Result<(), Status> {
        if pages == 0 {
            return Ok(());
        }
        let first = self.early.alloc_frames(pages).ok_or(Status::Exhausted)?;
        self.map(address, first, pages, WRITE)?;
        self.home.writable.push(Writable { first, pages, contents }).map_err(|_| Status::Exhausted)
    }

    fn image(&mut self, service: &ServiceRecord) -> Result<(), Status> {
        for segment in service.segments.iter().filter(|segment| segment.pages != 0) {
            let access = Access::from_bits(segment.access as u8).ok_or(Status::Range)?;
            let contents = self.in_bundle(segment.bundle_page);
            let address = segment.page * PAGE_SIZE;
            if access.contains(Access::WRITE) {
                self.own(address, u64::from(segment.pages), (contents, u64::from(segment.file_pages)))?;
            } else {
                self.map(address, contents, u64::from(segment.pages), access)?;
            }
        }
        let nothing = (Frame(0), 0);
        let stack = u64::from(service.stack_pages);
        self.own(layout::STACK_TOP - stack * PAGE_SIZE, stack, nothing)?;
        self.own(layout::HEAP, u64::from(service.heap_pages), nothing)
    }

    fn files(&mut self, service: &ServiceRecord, info: &mut ServiceInfo) -> Result<(), Status> {
        for (number, (file, length)) in service.files.iter().zip(&mut info.files).enumerate() {
            let address = layout::FILES + number as u64 * layout::FILE_STRIDE;
            let first = self.in_bundle(file.bundle_page);
            self.map(address, first, file.bytes.div_ceil(PAGE_SIZE), READ)?;
            *length = file.bytes;
        }
        Ok(())
    }

    fn rings(
        &mut self,
        bundle: &Bundle<'_>,
        slot: usize,
        frames: &[Frame],
        info: &mut ServiceInfo,
    ) -> Result<(), Status> {
        for (ring, frame) in bundle.rings.iter().zip(frames) {
            let produces = usize::from(ring.producer) == slot;
            if !produces && usize::from(ring.consumer) != slot {
                continue;
            }
            let (number, peer, peer_number) = if produces {
                (ring.producer_number, ring.consumer, ring.consumer_number)
            } else {
                (ring.consumer_number, ring.producer, ring.producer_number)
            };
            self.map(layout::RINGS + u64::from(number) * PAGE_SIZE, *frame, 1, WRITE)?;
            *info.ring.get_mut(usize::from(number)).ok_or(Status::Range)? = RingInfo {
                role: if produces { 1 } else { 2 },
                purpose: ring.purpose as u8,
                channel: ring.channel as u16,
                peer,
                peer_number,
            };
            info.rings = info.rings.max(u32::from(number) + 1);
            if produces {
                self.home.rings.push(*frame).map_err(|_| Status::Exhausted)?;
            }
        }
        Ok(())
    }

    fn finish(mut self, info: &ServiceInfo) -> Result<Home, Status> {
        let page = self.early.alloc_frame().ok_or(Status::Exhausted)?;
        self.map(layout::INFO, page, 1, READ)?;
        kmap::write(page, 0, info.as_bytes());
        self.home.info = page;
        Ok(self.home)
    }
}

/// Makes a service's memory what it was before its first start. Returns its entry point.
pub fn reset(slot: usize, id: u32) -> u64 {
    let Some(home) = home(slot) else { return 0 };
    if home.started.swap(true, Ordering::AcqRel) {
        // A ring's contents outlive its producer: what it sent is still to be read.
        for writable in &home.writable {
            (writable.first.0..writable.first.0 + writable.pages).for_each(|frame| _ = kmap::zero(Frame(frame)));
        }
    }
    for writable in &home.writable {
        let (contents, pages) = writable.contents;
        for page in 0..pages {
            copy_page(Frame(contents.0 + page), Frame(writable.first.0 + page));
        }
    }
    kmap::write(home.info, core::mem::offset_of!(ServiceInfo, id), &id.to_le_bytes());
    home.entry
}

fn copy_page(from: Frame, to: Frame) {
    let mut chunk = [0; 512];
    for offset in (0..PAGE_SIZE as usize).step_by(chunk.len()) {
        kmap::read(from, offset, &mut chunk);
        kmap::write(to, offset, &chunk);
    }
}
