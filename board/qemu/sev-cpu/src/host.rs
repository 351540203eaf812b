//! What the host does to entries beside RMPUPDATE.

use caisson_core::rmp::{Rmp, RmpError};
use caisson_proto::addr::{Frame, LARGE_PAGES, PAGE_SIZE};
use caisson_proto::rmp::{ASSIGNED, Entry, GPA, IMMUTABLE, LARGE, LOCKED};

/// PSMASH: an entry of 2 MiB becomes 512 of 4 KiB, each with the rights and the acceptance of the one.
///
/// # Errors
/// [`RmpError::Input`] for a page that isn't aligned, isn't covered or isn't of 2 MiB; [`RmpError::InUse`];
/// [`RmpError::Permission`] for one that the processor has (unverified). Nothing is changed then.
pub fn psmash(rmp: Rmp, frame: Frame) -> Result<(), RmpError> {
    let large = |entry: &Entry| entry.has(ASSIGNED) && entry.has(LARGE) && frame.0.is_multiple_of(LARGE_PAGES);
    let entry = rmp.get(frame).filter(large).ok_or(RmpError::Input)?;
    if entry.has(LOCKED) {
        return Err(RmpError::InUse);
    }
    if entry.has(IMMUTABLE) {
        return Err(RmpError::Permission);
    }
    let [low, high] = entry.0;
    for page in 0..LARGE_PAGES {
        let gpa = (entry.gpa().0 + page * PAGE_SIZE) & GPA;
        rmp.set(Frame(frame.0 + page), Entry([low & !GPA & !LARGE | gpa, high]));
    }
    Ok(())
}
