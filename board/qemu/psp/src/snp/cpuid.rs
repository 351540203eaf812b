//! The page in which the hypervisor says what CPUID tells (56860 section 8.17.2.6).
//!
//! Its form is checked. Whether its values are possible on this CPU is not, and CAVEATS.md says so.

use crate::buffer::field;
use crate::status::Status;

/// Functions in a page.
const MAX_FUNCTIONS: u32 = 64;

/// Refuses a page with more functions than fit or with reserved fields set.
pub fn check(page: &[u8]) -> Result<(), Status> {
    let count = u32::from_le_bytes(field(page, 0));
    let head: [u8; 12] = field(page, 4);
    if count > MAX_FUNCTIONS || head != [0; 12] {
        return Err(Status::InvalidParam);
    }
    let reserved = |index: usize| field::<8>(page, 16 + index * 48 + 40) != [0; 8];
    if (0..count as usize).any(reserved) { Err(Status::InvalidParam) } else { Ok(()) }
}
