//! What a guest does to entries of its own pages: PVALIDATE and RMPADJUST.
//!
//! Whoever calls has translated the guest's address: to the guest-physical one, to the frame, and to the size of the nested
//! page.

use caisson_core::rmp::Rmp;
use caisson_proto::addr::{Frame, Gpa, LARGE_PAGES, PAGE_SIZE};
use caisson_proto::rmp::{ASSIGNED, Entry, IMMUTABLE, LARGE, LOCKED, VALIDATED, VMSA};

use crate::vmpl::{ALL, Vmpl, rights, with_rights};

/// Who executes the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its ASID.
    pub asid: u32,
    /// Its privilege level.
    pub vmpl: Vmpl,
}

/// The page that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Guest-physical address.
    pub gpa: Gpa,
    /// The frame that it lies in.
    pub frame: Frame,
    /// The guest says that it has 2 MiB.
    pub large: bool,
    /// It lies in a nested page of 2 MiB.
    pub nested_large: bool,
}

/// How an instruction ends that isn't done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// FAIL_INPUT, 1 in EAX.
    Input,
    /// FAIL_PERMISSION, 2.
    Permission,
    /// FAIL_SIZEMISMATCH, 6.
    SizeMismatch,
    /// A nested page fault: the host has to put the RMP right first, which this page's entry doesn't fit.
    Nested(Mismatch),
}

impl Refused {
    /// What the instruction leaves in EAX; none where it faults.
    pub const fn eax(self) -> Option<u32> {
        match self {
            Self::Input => Some(1),
            Self::Permission => Some(2),
            Self::SizeMismatch => Some(6),
            Self::Nested(_) => None,
        }
    }
}

/// What about the entry isn't right: bits of the nested page fault's EXITINFO1 (APM volume 2, section 15.36.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It isn't this guest's, at this address. Bit 31, RMP.
    Owner,
    /// The guest asks for 4 KiB, and it or the nested page is of 2 MiB: the host has to smash it. Bit 35, SIZEM.
    Size,
}

/// An entry that is this guest's, at this address and in this size.
fn own(rmp: Rmp, guest: Guest, page: Page) -> Result<(Frame, Entry), Refused> {
    let pages = if page.large { LARGE_PAGES } else { 1 };
    if !page.gpa.0.is_multiple_of(pages * PAGE_SIZE) || page.large && !page.frame.0.is_multiple_of(LARGE_PAGES) {
        return Err(Refused::Input);
    }
    let head = Frame(page.frame.0 & !(LARGE_PAGES - 1));
    let is_large = |entry: &Entry| entry.has(ASSIGNED) && entry.has(LARGE);
    // A page in one of 2 MiB has no entry of its own.
    let in_large = rmp.get(head).filter(is_large);
    let (at, entry) = match in_large {
        Some(entry) => (head, entry),
        None => (page.frame, rmp.get(page.frame).ok_or(Refused::Nested(Mismatch::Owner))?),
    };
    // Where the entry would begin for this page: nowhere, if the address is too low for it.
    let gpa = page.gpa.0.checked_sub((page.frame.0 - at.0) * PAGE_SIZE).map(Gpa);
    let its = entry.has(ASSIGNED) && entry.asid() == guest.asid && Some(entry.gpa()) == gpa;
    if !its || entry.has(IMMUTABLE) || entry.has(LOCKED) {
        return Err(Refused::Nested(Mismatch::Owner));
    }
    match (page.large, in_large.is_some()) {
        // The guest takes 4 KiB pages one by one then.
        (true, false) => Err(Refused::SizeMismatch),
        (false, true) => Err(Refused::Nested(Mismatch::Size)),
        // Unverified: the host has to split its own page here.
        (false, false) if page.nested_large => Err(Refused::Nested(Mismatch::Size)),
        (true, true) if !page.nested_large => Err(Refused::SizeMismatch),
        _ => Ok((at, entry)),
    }
}

/// PVALIDATE: the guest accepts a page, or gives it up. Whether that changed anything: the carry flag says that it didn't.
///
/// # Errors
/// All of [`Refused`]; [`Refused::Permission`] below VMPL 0 (unverified). Nothing is changed then.
pub fn pvalidate(rmp: Rmp, guest: Guest, page: Page, validate: bool) -> Result<bool, Refused> {
    if guest.vmpl != Vmpl::Zero {
        return Err(Refused::Permission);
    }
    let (at, entry) = own(rmp, guest, page)?;
    if entry.has(VALIDATED) == validate {
        return Ok(false);
    }
    let [low, high] = entry.0;
    rmp.set(at, Entry([low ^ VALIDATED, high]));
    Ok(true)
}

/// What RMPADJUST sets: RDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// For which level.
    pub target: Vmpl,
    /// What it may do: read 1, write 2, execute in user mode 4, in supervisor mode 8.
    pub rights: u8,
    /// The page is a save area.
    pub vmsa: bool,
}

impl Attributes {
    /// What stands in the register.
    ///
    /// # Errors
    /// [`Refused::Input`] if a bit is set that means nothing, or there is no such level.
    pub const fn from_register(rdx: u64) -> Result<Self, Refused> {
        let [target, rights, vmsa, ..] = rdx.to_le_bytes();
        match Vmpl::from_number(target) {
            Some(target) if rights & !ALL == 0 && vmsa < 2 && rdx >> 17 == 0 => {
                Ok(Self { target, rights, vmsa: vmsa == 1 })
            }
            _ => Err(Refused::Input),
        }
    }
}

/// RMPADJUST: a level decides what a lower one may do with a page that the guest has accepted; VMPL 0 also, whether it
/// is a save area, which below it is ignored.
///
/// # Errors
/// All of [`Refused`]; [`Refused::Permission`] for the own level or a higher one, and for more than the own level may
/// do. A page that wasn't accepted is [`Refused::Nested`] here; on hardware it is #VC (unverified). Nothing is changed
/// then.
pub fn rmpadjust(rmp: Rmp, guest: Guest, page: Page, to: Attributes) -> Result<(), Refused> {
    let (at, entry) = own(rmp, guest, page)?;
    if !entry.has(VALIDATED) {
        return Err(Refused::Nested(Mismatch::Owner));
    }
    let mine = rights(entry, guest.vmpl);
    if to.target <= guest.vmpl || to.rights & !mine != 0 {
        return Err(Refused::Permission);
    }
    let Entry([low, high]) = with_rights(entry, to.target, to.rights);
    let vmsa = if guest.vmpl == Vmpl::Zero { to.vmsa } else { entry.has(VMSA) };
    rmp.set(at, Entry([if vmsa { low | VMSA } else { low & !VMSA }, high]));
    Ok(())
}
