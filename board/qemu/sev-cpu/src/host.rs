//! What the host does to entries beside RMPUPDATE.

use caisson_core::rmp::Rmp;
use caisson_proto::addr::{Frame, LARGE_PAGES, PAGE_SIZE};
use caisson_proto::rmp::{ASSIGNED, Entry, GPA, IMMUTABLE, LARGE, LOCKED};

/// Why PSMASH was refused: EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SmashError {
    /// Not aligned, or not covered by the table.
    Input = 1,
    /// Somebody else is changing the entry.
    InUse = 3,
    /// It isn't of 2 MiB, isn't assigned, or is the processor's (which of them it is for the last is unverified).
    Page = 7,
}

/// PSMASH: an entry of 2 MiB becomes 512 of 4 KiB, each with the rights and the acceptance of the one.
///
/// # Errors
/// All of [`SmashError`]; nothing is changed then.
pub fn psmash(rmp: Rmp, frame: Frame) -> Result<(), SmashError> {
    let entry = rmp.get(frame).filter(|_| frame.0.is_multiple_of(LARGE_PAGES)).ok_or(SmashError::Input)?;
    if entry.has(LOCKED) {
        return Err(SmashError::InUse);
    }
    if !entry.has(ASSIGNED) || !entry.has(LARGE) || entry.has(IMMUTABLE) {
        return Err(SmashError::Page);
    }
    let [low, high] = entry.0;
    for page in 0..LARGE_PAGES {
        let gpa = (entry.gpa().0 + page * PAGE_SIZE) & GPA;
        rmp.set(Frame(frame.0 + page), Entry([low & !GPA & !LARGE | gpa, high]));
    }
    Ok(())
}
