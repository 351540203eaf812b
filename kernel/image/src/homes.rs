//! The services' homes, built once at boot as the bundle lays them out.

use caisson_core::{boot::BootInfo, bundle::Bundle};
use caisson_hw::{Early, home::Home, home::settle, mailbox, space::Space};
use caisson_proto::{layout::MAILBOX, layout::RINGS, prelude::*};

/// Builds every service's home.
///
/// # Errors
/// [`Status::Exhausted`] if memory ends; others mean that the bundle has two things at one place.
pub fn build(bundle: &Bundle<'static>, boot: &BootInfo, early: &mut Early) -> Result<(), Status> {
    let rings = early.take_frames(bundle.rings.len() as u64).ok_or(Status::Exhausted)?;
    for (slot, service) in bundle.services.iter().enumerate() {
        let space = Space::new(early).ok_or(Status::Exhausted)?;
        let frames = [Frame(0); MAX_MAPS];
        let mut home = Home { space, ports: service.ports, record: service, bundle: bundle.bytes, frames };
        for (map, first) in service.maps.iter().zip(&mut home.frames).filter(|(map, _)| map.pages != 0) {
            let access = Access::from_bits(map.access as u8).ok_or(Status::Range)?;
            *first = Frame(boot.bundle.start.frame().0 + map.bundle_page);
            if map.own == 1 {
                *first = early.take_frames(map.pages.into()).ok_or(Status::Exhausted)?;
            }
            if map.page == MAILBOX / PAGE_SIZE {
                mailbox::settle(*first, early);
            }
            for page in 0..map.pages.into() {
                home.space.map(VPage(map.page + page), Frame(first.0 + page), 1, access, early)?;
            }
        }
        for (frame, ring) in (rings.0..).map(Frame).zip(bundle.rings) {
            let ends = [(ring.producer, ring.producer_number), (ring.consumer, ring.consumer_number)];
            for (_, number) in ends.iter().filter(|(end, _)| usize::from(*end) == slot) {
                let page = VPage(RINGS / PAGE_SIZE + u64::from(*number));
                home.space.map(page, frame, 1, Access::READ | Access::WRITE, early)?;
            }
        }
        settle(slot, home);
    }
    Ok(())
}
