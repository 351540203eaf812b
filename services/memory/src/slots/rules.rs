//! What may be changed of a slot. A function of the slot as it is and of what is asked, in this order:
//!
//! | asked for | answer |
//! |---|---|
//! | flags that don't go together, an id that can't be, a range that wraps | refused |
//! | no pages, and there is no such slot | refused |
//! | no pages | deleted |
//! | there is no such slot | made, where nothing overlaps it |
//! | it has a gmem, or is to have one | refused |
//! | other memory, another length, read-only or not any more | refused |
//! | another guest frame | moved, where nothing else overlaps it |
//! | other flags | changed |
//! | the same | nothing |
//!
//! It is the order in which Linux answers, so that a vmm written for it is told the same.

use caisson_proto::memory::{MAX_SLOTS, SlotFlags};
use caisson_proto::slots::GmemAddress;

use super::{END, Error, Slot, Wanted};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is so already.
    Nothing,
    /// There will be a slot.
    Create,
    /// It will be gone.
    Delete,
    /// It will be elsewhere.
    Move,
    /// It will have other flags.
    Flags,
}

/// What is to be done to a slot so that it is as wanted.
///
/// # Errors
/// As above.
pub fn plan(old: Option<&Slot>, wanted: &Wanted) -> Result<Plan, Error> {
    let has_gmem = wanted.flags.contains(SlotFlags::GMEM);
    if has_gmem && wanted.flags != SlotFlags::GMEM || !has_gmem && wanted.gmem != GmemAddress::default() {
        return Err(Error::BadFlags);
    }
    if u64::from(wanted.id.0) >= MAX_SLOTS {
        return Err(Error::BadId);
    }
    for start in [wanted.gfn.0, wanted.host.page, wanted.gmem.page] {
        if start >= END || wanted.pages > END - start {
            return Err(Error::Wraps);
        }
    }
    match old {
        None if wanted.pages == 0 => Err(Error::Absent),
        None => Ok(Plan::Create),
        Some(_) if wanted.pages == 0 => Ok(Plan::Delete),
        Some(old) if has_gmem || old.flags.contains(SlotFlags::GMEM) => Err(Error::GmemFixed),
        Some(old) if old.host != wanted.host => Err(Error::HostChanged),
        Some(old) if old.pages != wanted.pages => Err(Error::SizeChanged),
        Some(old) if (old.flags ^ wanted.flags).contains(SlotFlags::READ_ONLY) => Err(Error::ReadOnlyChanged),
        Some(old) if old.gfn != wanted.gfn => Ok(Plan::Move),
        Some(old) if old.flags != wanted.flags => Ok(Plan::Flags),
        Some(_) => Ok(Plan::Nothing),
    }
}
