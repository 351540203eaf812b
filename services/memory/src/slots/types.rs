//! What a slot is, what is asked for, and why it is refused.

use core::ops::Range;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, PAGE_SIZE, VmId};
use caisson_proto::memory::SlotFlags;
use caisson_proto::slots::{GmemAddress, GmemId, HostAddress, Region, SlotId};
use caisson_proto::wire::Field;

use super::coherence::Caching;

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The VM that it is of.
    pub vm: VmId,
    /// Its id there.
    pub id: SlotId,
    /// What it is.
    pub flags: SlotFlags,
    /// Its first guest frame.
    pub gfn: Gfn,
    /// Its length, at least 1.
    pub pages: u64,
    /// What it shows there.
    pub host: HostAddress,
    /// And of private memory, where the flags say so.
    pub gmem: GmemAddress,
    /// How it shows it.
    pub caching: Caching,
    /// False from the moment from which it is to be deleted or moved: nothing may be mapped there any more.
    pub valid: bool,
}

impl Slot {
    /// One past its last guest frame.
    pub const fn end(&self) -> u64 {
        self.gfn.0 + self.pages
    }

    /// Its pages of the region.
    pub const fn host_pages(&self) -> Range<u64> {
        self.host.page..self.host.page + self.pages
    }
}

/// What a slot is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub id: SlotId,
    /// What it is to be.
    pub flags: SlotFlags,
    /// Its first guest frame.
    pub gfn: Gfn,
    /// Its length; 0 deletes it.
    pub pages: u64,
    /// What it is to show there.
    pub host: HostAddress,
    /// And of private memory; the first page of gmem 0 where the flags don't say so.
    pub gmem: GmemAddress,
}

impl Wanted {
    /// The same in bytes: guest-physical address, length, and offset in the region.
    ///
    /// # Errors
    /// [`Error::Unaligned`] if one of them isn't a multiple of 4 KiB.
    pub fn bytes(
        id: SlotId, flags: SlotFlags, gpa: u64, length: u64, region: Region, offset: u64,
    ) -> Result<Self, Error> {
        if !(gpa | length | offset).is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        Ok(Self {
            id,
            flags,
            gfn: Gfn(gpa / PAGE_SIZE),
            pages: length / PAGE_SIZE,
            host: HostAddress { region, page: offset / PAGE_SIZE },
            gmem: GmemAddress { gmem: GmemId(0), page: 0 },
        })
    }
}

/// Pages of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// Which region.
    pub region: Region,
    /// The pages.
    pub pages: Range<u64>,
}

impl HostRange {
    /// The pages that bytes from `start` to before `end` lie in: none if `end` isn't above `start`. An aligned end doesn't
    /// touch the page that begins there.
    pub const fn bytes(region: Region, start: u64, end: u64) -> Self {
        if end <= start {
            return Self { region, pages: 0..0 };
        }
        Self { region, pages: start / PAGE_SIZE..end.div_ceil(PAGE_SIZE) }
    }

    /// Whether there is no page in it.
    pub const fn is_empty(&self) -> bool {
        self.pages.end <= self.pages.start
    }

    /// As words of host addresses. What lies past any region is cut off.
    pub(super) fn words(&self) -> Range<u64> {
        let base = HostAddress { region: self.region, page: 0 }.to_word();
        base + self.pages.start.min(super::END)..base + self.pages.end.min(super::END)
    }
}

/// Why something is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// An address or length isn't a multiple of 4 KiB.
    Unaligned,
    /// A range ends past the last address that there can be.
    Wraps,
    /// Flags that don't go together, or a gmem without its flag.
    BadFlags,
    /// No slot can have this id.
    BadId,
    /// The region is shorter.
    PastEnd,
    /// Another slot shows some of these guest frames.
    Overlaps,
    /// The slot shows other memory.
    HostChanged,
    /// The slot has another length.
    SizeChanged,
    /// The slot is read-only and is not to be, or the other way round.
    ReadOnlyChanged,
    /// A slot with a gmem can only be deleted.
    GmemFixed,
    /// It can't be deleted, since it isn't there.
    Absent,
    /// A notification is open, or another slot is being emptied: ask again.
    Busy,
    /// No slot is left for this VM.
    Full,
    /// The host can't flush this memory.
    Incoherent,
    /// No such VM.
    NoVm,
    /// No such region of this VM.
    NoRegion,
    /// The VM has such a region.
    RegionExists,
    /// Nothing is shown at this guest frame.
    NoSlot,
    /// The machine refused it.
    Machine(Status),
}
