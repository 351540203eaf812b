//! Copies to the kernel from the service that is loaded here.
//!
//! A page that isn't there ends the copy, by an exception whose handler knows the one instruction that may fault.

use caisson_proto::layout::USER_END;

use crate::prelude::*;

unsafe extern "C" {
    /// Copies `count` bytes. Returns 0, or 1 if a page was lacking. User pages are reachable meanwhile.
    fn caisson_user_copy(to: *mut u8, from: *const u8, count: usize) -> u32;
    fn caisson_user_copy_at();
    fn caisson_user_copy_failed();
}

core::arch::global_asm!(
    r#"
    .global caisson_user_copy, caisson_user_copy_at, caisson_user_copy_failed
caisson_user_copy:
    mov rcx, rdx
    xor eax, eax
    stac
caisson_user_copy_at:
    rep movsb
    clac
    ret
caisson_user_copy_failed:
    mov eax, 1
    clac
    ret
"#
);

/// Where the kernel goes on after an exception that it expects.
pub(crate) fn fixup(trap: &Trap) -> Option<u64> {
    let expected = trap.vector == PAGE_FAULT && trap.rip == caisson_user_copy_at as *const () as u64;
    expected.then_some(caisson_user_copy_failed as *const () as u64)
}

/// Copies from the service that is loaded here.
/// False if a page isn't there; `into` may have been filled in part.
pub(crate) fn read(address: u64, into: &mut [u8]) -> bool {
    let in_user_half = address.checked_add(into.len() as u64).is_some_and(|end| end <= USER_END);
    // SAFETY: the source is in the user half, where Rust has nothing; a fault there is expected. `into` is the caller's.
    in_user_half && unsafe { caisson_user_copy(into.as_mut_ptr(), address as *const u8, into.len()) } == 0
}
