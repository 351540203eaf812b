//! The heap of services that the manifest gives one.

use caisson_proto::layout;
use linked_list_allocator::LockedHeap;

use crate::info;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Takes the heap into use. Called once, before the service's start.
pub(crate) fn init() {
    let bytes = info().heap_bytes as usize;
    if bytes > 0 {
        // SAFETY: the kernel maps that many writable bytes here for this service alone, and this runs once.
        unsafe { HEAP.lock().init(layout::HEAP as *mut u8, bytes) };
    }
}
