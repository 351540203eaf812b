//! Copies between the kernel and the service that is loaded here.
//!
//! A page that isn't there ends the copy, by an exception whose handler knows the one instruction that may fault.

use caisson_proto::layout::USER_END;

use crate::traps::Trap;

/// The range isn't all there, or not writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

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

const PAGE_FAULT: u64 = 14;

/// Where the kernel goes on after an exception that it expects.
pub(crate) fn fixup(trap: &Trap) -> Option<u64> {
    let expected = trap.vector == PAGE_FAULT && trap.rip == caisson_user_copy_at as *const () as u64;
    expected.then_some(caisson_user_copy_failed as *const () as u64)
}

fn check(address: u64, count: usize) -> Result<(), Fault> {
    let end = address.checked_add(count as u64).ok_or(Fault)?;
    if end <= USER_END { Ok(()) } else { Err(Fault) }
}

/// Copies from the service that is loaded here.
///
/// # Errors
/// [`Fault`] if a page isn't there; `into` may have been filled in part.
pub fn read(address: u64, into: &mut [u8]) -> Result<(), Fault> {
    check(address, into.len())?;
    // SAFETY: the source lies in the user half, where a lacking page is handled; the target is the caller's.
    let failed = unsafe { caisson_user_copy(into.as_mut_ptr(), address as *const u8, into.len()) };
    if failed == 0 { Ok(()) } else { Err(Fault) }
}

/// Copies to the service that is loaded here.
///
/// # Errors
/// [`Fault`] if a page isn't there or not writable; a part may have been written.
pub fn write(address: u64, from: &[u8]) -> Result<(), Fault> {
    check(address, from.len())?;
    // SAFETY: the target lies in the user half, where the kernel holds no reference.
    let failed = unsafe { caisson_user_copy(address as *mut u8, from.as_ptr(), from.len()) };
    if failed == 0 { Ok(()) } else { Err(Fault) }
}
