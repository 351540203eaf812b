//! Copies between the kernel and the service that is loaded here.
//!
//! A page that isn't there ends the copy, by an exception whose handler knows the one instruction that may fault.

use caisson_proto::layout::USER_END;

use crate::prelude::*;

unsafe extern "C" {
    /// Copies `count` bytes. Returns 0, or 1 if a user's page was lacking. User pages are reachable meanwhile.
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

/// Copies from the service that is loaded here to the kernel, or out to the service. False if a page isn't there, or
/// isn't writable; a part may have been copied.
///
/// # Safety
/// So many bytes at `at` are for this to read or write.
pub(crate) unsafe fn copy(address: u64, at: *mut u8, bytes: u64, out: bool) -> bool {
    let in_user_half = address.checked_add(bytes).is_some_and(|end| end <= USER_END);
    let (to, from) = if out { (address as *mut u8, at.cast_const()) } else { (at, address as *const u8) };
    // SAFETY: one side is in the user half, where Rust has nothing, and a fault there is expected; the other is as the
    // caller says.
    in_user_half && unsafe { caisson_user_copy(to, from, bytes as usize) } == 0
}
