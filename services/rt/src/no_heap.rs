//! The allocator of services without a heap: it has nothing to give. The contract's crate can describe variable
//! things with `alloc`; a service without a heap never makes one.

use core::alloc::{GlobalAlloc, Layout};

struct NoHeap;

// SAFETY: null says that there is no memory, which every caller must expect; so nothing is ever freed.
unsafe impl GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static NO_HEAP: NoHeap = NoHeap;
