//! Guest memory: where it lies, and which pages of it are backed.
//!
//! Memory is backed in chunks of 2 MiB when it is first touched, so a VM starts at once and large pages are kept. The guest may
//! give pages back.

use alloc::vec::Vec;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa, LARGE_PAGES, PAGE_SIZE};
use caisson_proto::firmware::JOB_PAGES;

use crate::pages::Pages;
use crate::platform::Platform;
use crate::plugged::Plugged;

/// Memory below 4 GiB ends here at the latest: 3 GiB. Above are the APICs.
pub const LOW_END: u64 = 0xc000_0000;
/// Memory that found no place below goes on from here: 4 GiB.
pub const HIGH_START: u64 = 1 << 32;
/// Bytes that are backed at once.
pub const CHUNK: u64 = LARGE_PAGES * PAGE_SIZE;

// What was loaded is measured chunk by chunk.
const _: () = assert!(CHUNK <= JOB_PAGES * PAGE_SIZE);

/// Guest memory that can't be accessed: it isn't there, or memory refused to back it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// The first address concerned.
    pub gpa: u64,
    /// memory's answer, if it was asked.
    pub refused: Option<Status>,
}

/// The guest's memory map.
#[derive(Debug)]
pub struct Ram {
    low_end: u64,
    high_end: u64,
    /// What comes and goes while the guest runs, above all other memory.
    plugged: Plugged,
    backed: Pages,
    /// memory was asked for them, and may have them mapped whatever it answered, until it says that it took them back.
    asked: Pages,
    /// Given back one by one, or refused with their chunk: they come one by one, so that a balloon keeps what it holds.
    given: Pages,
    /// How often pages were given back.
    pub(crate) epoch: u64,
    /// The guest's alone: the vmm can't reach them, and a fault there would end it.
    pub(crate) private: Pages,
    /// They were measured at the guest's launch, and don't come back.
    sealed: bool,
}

impl Ram {
    /// `bytes` of memory, a multiple of 2 MiB; what exceeds it is left out.
    pub fn new(bytes: u64) -> Self {
        Self::with_region(bytes, 0)
    }

    /// The same, and above it a region of so many bytes for memory that is plugged: none of it is yet.
    pub fn with_region(bytes: u64, region: u64) -> Self {
        let bytes = bytes & !(CHUNK - 1);
        let low_end = bytes.min(LOW_END);
        let high_end = HIGH_START.saturating_add(bytes - low_end);
        let plugged = Plugged::new(high_end, region);
        let pages = match plugged.region() {
            region if !region.is_empty() => region.end / PAGE_SIZE,
            _ if high_end > HIGH_START => high_end / PAGE_SIZE,
            _ => low_end / PAGE_SIZE,
        };
        let [backed, asked, given, private] = [(); 4].map(|()| Pages::new(pages));
        Self { low_end, high_end, plugged, backed, asked, given, epoch: 0, private, sealed: false }
    }

    /// Which memory is plugged.
    pub fn plugged(&self) -> &Plugged {
        &self.plugged
    }

    /// One past the last byte below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.low_end
    }

    /// One past the last byte; 4 GiB if there is none above it.
    pub fn high_end(&self) -> u64 {
        self.high_end
    }

    /// Whether there is memory at this address.
    #[inline]
    pub fn contains(&self, gpa: u64) -> bool {
        gpa < self.low_end || (gpa >= HIGH_START && gpa < self.high_end) || self.plugged.has(gpa)
    }

    /// Whether all of these bytes are memory, without a hole.
    pub fn is_whole(&self, gpa: u64, bytes: u64) -> bool {
        let Some(end) = gpa.checked_add(bytes) else { return false };
        end <= self.low_end || (gpa >= HIGH_START && end <= self.high_end) || self.plugged.all(gpa, bytes)
    }

    /// Moves whenever pages are given back: what was backed before may not be any more.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the page of an address is backed, so that it can be accessed.
    #[inline]
    pub fn is_backed(&self, gpa: u64) -> bool {
        self.backed.has(gpa / PAGE_SIZE)
    }

    /// Whether the page of an address is the guest's alone.
    pub fn is_private(&self, gpa: u64) -> bool {
        self.private.has(gpa / PAGE_SIZE)
    }

    /// Pages that are backed and the guest's alone.
    pub fn private_pages(&self) -> u64 {
        self.backed.common(&self.private)
    }

    /// Backs the page of an address: with its whole chunk, unless the guest gave back single pages of that or there aren't so
    /// many.
    ///
    /// # Errors
    /// [`NoMemory`] outside guest memory, or if memory refuses.
    pub fn back(&mut self, platform: &mut impl Platform, gpa: u64) -> Result<(), NoMemory> {
        if !self.contains(gpa) {
            return Err(NoMemory { gpa, refused: None });
        }
        let page = gpa / PAGE_SIZE;
        let chunk = page & !(LARGE_PAGES - 1);
        let refused = |status| NoMemory { gpa, refused: Some(status) };
        let private = self.private.count(chunk, LARGE_PAGES);
        if !self.given.any(chunk, LARGE_PAGES) && (private == 0 || private == LARGE_PAGES) {
            self.asked.set(chunk, LARGE_PAGES, true);
            match self.populate(platform, chunk, LARGE_PAGES) {
                Ok(()) => {
                    self.backed.set(chunk, LARGE_PAGES, true);
                    self.plugged.backed(chunk, LARGE_PAGES);
                    return Ok(());
                }
                // There may be a page, or it came before there were no more.
                Err(Status::Exhausted) => {}
                Err(status) => return Err(refused(status)),
            }
        }
        self.asked.set(page, 1, true);
        self.populate(platform, page, 1).map_err(refused)?;
        if !self.given.any(chunk, LARGE_PAGES) {
            self.given.set(chunk, LARGE_PAGES, true);
        }
        self.backed.set(page, 1, true);
        self.plugged.backed(page, 1);
        self.given.set(page, 1, false);
        Ok(())
    }

    /// Gives pages back: what is in them is lost, and the next access backs them anew. Whole chunks come back whole, single pages
    /// one by one.
    ///
    /// # Errors
    /// `Range` for what isn't all guest memory, `State` for what is the guest's alone; or memory's own. Some of the pages may be
    /// gone then.
    pub fn release(&mut self, platform: &mut impl Platform, gfn: u64, pages: u64) -> Result<(), Status> {
        let bytes = pages.checked_mul(PAGE_SIZE).ok_or(Status::Range)?;
        let gpa = gfn.checked_mul(PAGE_SIZE).ok_or(Status::Range)?;
        if !self.is_whole(gpa, bytes) {
            return Err(Status::Range);
        }
        let end = gfn + pages;
        if self.sealed {
            return Err(Status::State);
        }
        self.epoch += 1;
        let mut at = gfn;
        while at < end {
            // A call ends where a chunk does.
            let next = ((at / LARGE_PAGES + 1) * LARGE_PAGES).min(end);
            let count = next - at;
            if self.asked.any(at, count) {
                // From here on nothing reaches for them, whatever memory answers.
                self.backed.set(at, count, false);
                platform.give_back(Gfn(at), count)?;
                self.asked.set(at, count, false);
            }
            self.given.set(at, count, count < LARGE_PAGES);
            at = next;
        }
        Ok(())
    }

    /// Plugs blocks of the region, none of which may be plugged yet, once memory has promised them.
    ///
    /// # Errors
    /// `Range` for what isn't whole blocks of the region, `State` if any is plugged; or memory's own, and nothing is changed.
    pub fn plug(&mut self, platform: &mut impl Platform, gpa: u64, bytes: u64) -> Result<(), Status> {
        self.check_blocks(gpa, bytes, false)?;
        platform.promise(bytes / PAGE_SIZE, true)?;
        self.plugged.set(gpa, bytes, true);
        Ok(())
    }

    /// Gives blocks of the region back, all of which must be plugged. They are no memory any more.
    ///
    /// # Errors
    /// `Range` for what isn't whole blocks of the region, `State` if any isn't plugged; or memory's own: then all are
    /// plugged still, and what was in some of them may be lost.
    pub fn unplug(&mut self, platform: &mut impl Platform, gpa: u64, bytes: u64) -> Result<(), Status> {
        self.check_blocks(gpa, bytes, true)?;
        self.release(platform, gpa / PAGE_SIZE, bytes / PAGE_SIZE)?;
        // What they were promised and never took, nobody owes them now.
        let owed = self.plugged.set(gpa, bytes, false);
        if owed > 0 {
            // A memory that was started anew knows of no promise.
            let _ = platform.promise(owed, false);
        }
        Ok(())
    }

    /// Whether these are whole blocks of the region, and all are plugged or none is.
    fn check_blocks(&self, gpa: u64, bytes: u64, plugged: bool) -> Result<(), Status> {
        if bytes == 0 || !gpa.is_multiple_of(CHUNK) || !bytes.is_multiple_of(CHUNK) {
            return Err(Status::Range);
        }
        let (count, all) = self.plugged.count(gpa, bytes).ok_or(Status::Range)?;
        if count == if plugged { all } else { 0 } { Ok(()) } else { Err(Status::State) }
    }

    /// What was loaded so far, chunk by chunk and in rising order: address and bytes.
    pub fn loaded(&self) -> Vec<(u64, u64)> {
        let all = (0..self.high_end).step_by(CHUNK as usize).filter(|gpa| self.contains(*gpa));
        all.filter(|gpa| self.backed.any(gpa / PAGE_SIZE, LARGE_PAGES)).map(|gpa| (gpa, CHUNK)).collect()
    }

    /// Every range of memory: address and bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let high = self.high_end - HIGH_START;
        [(0, self.low_end), (HIGH_START, high)].into_iter().filter(|(_, bytes)| *bytes != 0)
    }

    /// Backs all of it. From now on it is the guest's alone.
    ///
    /// # Errors
    /// [`NoMemory`] if memory refuses; nothing is private then.
    pub fn seal(&mut self, platform: &mut impl Platform) -> Result<(), NoMemory> {
        for (start, bytes) in self.ranges() {
            self.cover(platform, start, bytes)?;
        }
        for (start, bytes) in self.ranges() {
            self.private.set(start / PAGE_SIZE, bytes / PAGE_SIZE, true);
        }
        self.sealed = true;
        self.epoch += 1;
        Ok(())
    }

    /// Backs every page that `len` bytes from `gpa` touch. The range must lie in guest memory.
    fn cover(&mut self, platform: &mut impl Platform, gpa: u64, len: u64) -> Result<(), NoMemory> {
        let absent = NoMemory { gpa, refused: None };
        let last = gpa.checked_add(len.max(1) - 1).ok_or(absent)?;
        // Both ends may be memory with a hole between them.
        let pages = gpa / PAGE_SIZE..last / PAGE_SIZE + 1;
        if !self.is_whole(gpa, len.max(1)) || self.private.any(pages.start, pages.end - pages.start) {
            return Err(absent);
        }
        let mut at = gpa & !(PAGE_SIZE - 1);
        while at <= last {
            if !self.is_backed(at) {
                self.back(platform, at)?;
            }
            at += PAGE_SIZE;
        }
        Ok(())
    }

    /// Reads guest memory, backing it first where needed.
    ///
    /// # Errors
    /// [`NoMemory`] if any byte of the range isn't memory or can't be backed.
    pub fn read(&mut self, platform: &mut impl Platform, gpa: u64, into: &mut [u8]) -> Result<(), NoMemory> {
        self.cover(platform, gpa, into.len() as u64)?;
        if platform.read(Gpa(gpa), into) { Ok(()) } else { Err(NoMemory { gpa, refused: None }) }
    }

    /// Writes guest memory, backing it first where needed.
    ///
    /// # Errors
    /// [`NoMemory`] if any byte of the range isn't memory or can't be backed.
    pub fn write(&mut self, platform: &mut impl Platform, gpa: u64, from: &[u8]) -> Result<(), NoMemory> {
        self.cover(platform, gpa, from.len() as u64)?;
        if platform.write(Gpa(gpa), from) { Ok(()) } else { Err(NoMemory { gpa, refused: None }) }
    }

    /// Reads a little-endian number.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_u64(&mut self, platform: &mut impl Platform, gpa: u64) -> Result<u64, NoMemory> {
        let mut bytes = [0; 8];
        self.read(platform, gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
