//! The secure processor's registers, in the service that stands in for it: the first page at [`layout::MAILBOX`].
//!
//! The kernel reads and writes them at any time, so every access is atomic.

use core::sync::atomic::AtomicU32;

use caisson_proto::layout;
use caisson_proto::mailbox::REGISTERS;

/// The registers: command and response, low and high half of the buffer's address. A service that the manifest doesn't give
/// `silicon` has none, and faults when it looks at one.
pub fn registers() -> [&'static AtomicU32; 3] {
    REGISTERS.map(|offset| {
        let register = (layout::MAILBOX + offset as u64) as *mut u32;
        // SAFETY: where the page is mapped, it is for the life of this service, and it is shared with the kernel alone, which
        // uses atomics on the registers. The offsets are aligned, in one page, and Rust has nothing else there.
        unsafe { AtomicU32::from_ptr(register) }
    })
}
