//! What the kernel tells this service about itself, and its files.

use caisson_proto::info::{MAX_FILES, ServiceInfo, name};
use caisson_proto::layout;

/// This service's info page.
pub fn info() -> &'static ServiceInfo {
    // SAFETY: the kernel maps this page, read-only and filled, before the service runs, and doesn't change it
    // while it does. The address is page-aligned and the type fits a page (checked where it is declared); every
    // bit pattern is a value of it.
    unsafe { &*(layout::INFO as *const ServiceInfo) }
}

/// File `number` of this service, empty if it has none.
pub fn file(number: usize) -> &'static [u8] {
    let Some(&bytes) = info().files.get(number) else { return &[] };
    if bytes == 0 || bytes > layout::FILE_STRIDE || number >= MAX_FILES {
        return &[];
    }
    let address = layout::FILES + number as u64 * layout::FILE_STRIDE;
    // SAFETY: the kernel maps the file's pages here, read-only, for the life of this service; they are pages of
    // the bundle, which nobody can write.
    unsafe { core::slice::from_raw_parts(address as *const u8, bytes as usize) }
}

/// Name of the service in this slot of the manifest.
pub fn name_of(slot: usize) -> &'static str {
    info().names.get(slot).map_or("?", name)
}

/// Slot of the service with this name in the manifest.
pub fn slot_of(wanted: &str) -> Option<u16> {
    let info = info();
    info.names.iter().take(info.services as usize).position(|bytes| name(bytes) == wanted).map(|slot| slot as u16)
}
