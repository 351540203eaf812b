//! The services' homes, built once at boot from the bundle: everything that isn't written is mapped straight from it.

use caisson_core::{boot::BootInfo, bundle::Bundle};
use caisson_hw::{Early, clock, home::Home, home::Writable, home::settle, kmap, space::Space};
use caisson_proto::{
    abi::Status, addr::Frame, addr::PAGE_SIZE, addr::VPage, bundle::RingInfo, bundle::ServiceInfo,
    bundle::ServiceRecord, kernel::Access, layout,
};
use zerocopy::{FromZeros, IntoBytes};

const READ: Access = Access::READ;
const WRITE: Access = Access::READ.union(Access::WRITE);

/// Builds every service's home.
///
/// # Errors
/// [`Status::Exhausted`] if memory ends; others mean that the bundle has two things at one place.
pub fn build(bundle: &Bundle<'static>, boot: &BootInfo, early: &mut Early) -> Result<(), Status> {
    let rings = early.take_frames(bundle.rings.len() as u64).ok_or(Status::Exhausted)?;
    let mut template = ServiceInfo::new_zeroed();
    template.cpus = boot.cpus.len() as u32;
    template.tsc_khz = clock::tsc_khz();
    template.boot_tsc = clock::boot_tsc();
    template.services = bundle.services.len() as u32;
    for ((service, name), is_vmm) in bundle.services.iter().zip(&mut template.names).zip(&mut template.is_vmm) {
        (*name, *is_vmm) = (service.name, u8::from(service.is_vmm == 1));
    }
    for (slot, service) in bundle.services.iter().enumerate() {
        let space = Space::new(early).ok_or(Status::Exhausted)?;
        let info = early.take_frames(1).ok_or(Status::Exhausted)?;
        let (ports, entry, writable) = (service.ports, service.entry, heapless::Vec::new());
        let home = Home { space, ports, entry, info, writable };
        let bundle_first = boot.bundle.start.frame();
        let mut builder = Builder { bundle, bundle_first, early, home, info: template };
        builder.image(service)?;
        builder.files(service)?;
        builder.rings(slot as u16, rings)?;
        builder.map(layout::INFO, info, 1, READ)?;
        kmap::write(info, 0, builder.info.as_bytes());
        settle(slot, builder.home);
    }
    Ok(())
}

struct Builder<'a> {
    bundle: &'a Bundle<'static>,
    bundle_first: Frame,
    early: &'a mut Early,
    home: Home,
    info: ServiceInfo,
}

impl Builder<'_> {
    /// Maps frames page by page at a byte address.
    fn map(&mut self, address: u64, first: Frame, pages: u64, access: Access) -> Result<(), Status> {
        (0..pages).try_for_each(|page| {
            let at = VPage(address / PAGE_SIZE + page);
            self.home.space.map(at, Frame(first.0 + page), 1, access, self.early)
        })
    }

    /// Maps pages of the bundle.
    fn map_bundle(&mut self, address: u64, page: u64, pages: u64, access: Access) -> Result<(), Status> {
        self.map(address, Frame(self.bundle_first.0 + page), pages, access)
    }

    /// Maps memory of its own that the service writes.
    fn own(&mut self, address: u64, pages: u64, contents: &'static [u8]) -> Result<(), Status> {
        let first = self.early.take_frames(pages).ok_or(Status::Exhausted)?;
        self.map(address, first, pages, WRITE)?;
        self.home.writable.push(Writable { first, pages, contents }).map_err(|_| Status::Exhausted)
    }

    fn image(&mut self, service: &ServiceRecord) -> Result<(), Status> {
        for segment in service.segments.iter().filter(|segment| segment.pages != 0) {
            let access = Access::from_bits(segment.access as u8).ok_or(Status::Range)?;
            let (address, pages) = (segment.page * PAGE_SIZE, u64::from(segment.pages));
            if access.contains(Access::WRITE) {
                let [start, bytes] = [segment.bundle_page, segment.file_pages.into()].map(|n| (n * PAGE_SIZE) as usize);
                let contents = self.bundle.bytes.get(start..start + bytes).ok_or(Status::Range)?;
                self.own(address, pages, contents)?;
            } else {
                self.map_bundle(address, segment.bundle_page, pages, access)?;
            }
        }
        let [stack, heap] = [service.stack_pages, service.heap_pages].map(u64::from);
        self.info.heap_bytes = heap * PAGE_SIZE;
        self.own(layout::STACK_TOP - stack * PAGE_SIZE, stack, &[])?;
        self.own(layout::HEAP, heap, &[])
    }

    fn files(&mut self, service: &ServiceRecord) -> Result<(), Status> {
        for (number, file) in (0..).zip(&service.files) {
            let address = layout::FILES + number * layout::FILE_STRIDE;
            self.map_bundle(address, file.bundle_page, file.bytes.div_ceil(PAGE_SIZE), READ)?;
        }
        self.info.files = service.files.map(|file| file.bytes);
        Ok(())
    }

    /// Maps the rings whose end is this service.
    fn rings(&mut self, slot: u16, first: Frame) -> Result<(), Status> {
        for (frame, ring) in (first.0..).map(Frame).zip(self.bundle.rings) {
            let (produces, consumes) = (ring.producer == slot, ring.consumer == slot);
            let (role, number, peer, peer_number) = match (produces, consumes) {
                (true, _) => (1, ring.producer_number, ring.consumer, ring.consumer_number),
                (_, true) => (2, ring.consumer_number, ring.producer, ring.producer_number),
                _ => continue,
            };
            self.map(layout::RINGS + u64::from(number) * PAGE_SIZE, frame, 1, WRITE)?;
            let (purpose, channel) = (ring.purpose as u8, ring.channel as u16);
            let info = self.info.ring.get_mut(usize::from(number)).ok_or(Status::Range)?;
            *info = RingInfo { role, purpose, channel, peer, peer_number };
            self.info.rings = self.info.rings.max(u32::from(number) + 1);
        }
        Ok(())
    }
}
