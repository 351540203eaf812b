//! The services' homes: their address spaces, built once at boot as the bundle lays them out, and made pristine at each
//! start.
//!
//! What a service may write is the kernel's memory, lent to it for good; so a service can be started again although
//! memory itself is dead. What is shared, rings, outlives its producer: what it sent is still to be read.

use caisson_proto::layout::{INFO, MAILBOX, USER_END};

use crate::prelude::*;
use zerocopy::IntoBytes;

/// A service's home.
pub(crate) struct Home {
    /// Its space.
    pub space: Space,
    /// Its I/O ports.
    pub ports: [PortRange; MAX_PORT_RANGES],
}

static HOMES: [Once<Home>; MAX_SERVICES] = [const { Once::new() }; MAX_SERVICES];

/// The home of the service in a slot.
pub(crate) fn home(slot: usize) -> Option<&'static Home> {
    HOMES[slot % MAX_SERVICES].get()
}

/// Boot: builds every service's home.
///
/// # Errors
/// [`Status::Exhausted`] if memory ends; others mean that the bundle has two things at one place.
pub fn build(bundle: &Bundle<'static>, boot: &BootInfo, early: &mut Early) -> Outcome {
    let shared = early.take_frames(bundle.header.shared).ok_or(Status::Exhausted)?;
    for (service, place) in bundle.services.iter().zip(&HOMES) {
        let space = Space::new(early).ok_or(Status::Exhausted)?;
        place.call_once(|| Home { space, ports: service.ports });
    }
    for map in bundle.maps {
        let first = match map.kind {
            MapRecord::OWN => early.take_frames(map.pages.into()).ok_or(Status::Exhausted)?,
            MapRecord::SHARED => Frame(shared.0 + map.first),
            _ => Frame(boot.bundle.start.frame().0 + map.first),
        };
        if map.page == MAILBOX / PAGE_SIZE {
            mailbox::settle(first, early);
        }
        let access = Access::from_bits(map.access as u8).ok_or(Status::Range)?;
        let space = &home(map.service.into()).ok_or(Status::Range)?.space;
        for page in 0..map.pages.into() {
            space.map(VPage(map.page + page), Frame(first.0 + page), 1, access, early)?;
        }
    }
    Ok(())
}

/// Makes a service's own memory what it was before its first start. Returns its entry point.
pub(crate) fn reset(bundle: &Bundle, slot: usize) -> Option<u64> {
    let (id, cpus) = (KERNEL.service(slot).id.get().bits(), KERNEL.cpu_count() as u32);
    let head = InfoHead { id, cpus, tsc_khz: clock::tsc_khz(), boot_tsc: clock::boot_tsc() };
    let space = &home(slot)?.space;
    for map in bundle.maps.iter().filter(|map| usize::from(map.service) == slot && map.kind == MapRecord::OWN) {
        let contents = bundle.bytes.chunks(PAGE_SIZE as usize).skip(map.first as usize);
        let mut contents = contents.take(map.file_pages as usize);
        for page in map.page..map.page + u64::from(map.pages) {
            let frame = space.frame(page, Access::READ).ok()?;
            kmap::zero(frame);
            kmap::write(frame, 0, contents.next().unwrap_or_default());
            if page == INFO / PAGE_SIZE {
                kmap::write(frame, 0, head.as_bytes());
            }
        }
    }
    Some(bundle.services.get(slot)?.entry % USER_END)
}
