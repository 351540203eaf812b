//! Guest memory that is the guest's alone, page by page, as the guest asks for it.

use alloc::vec::Vec;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, LARGE_PAGES, PAGE_SIZE};

use crate::platform::Platform;
use crate::ram::Ram;

impl Ram {
    /// Makes pages the guest's alone, or shared with the vmm again. What is in them stays, unless the guest is encrypted.
    ///
    /// # Errors
    /// `Range` for what isn't all guest memory; or memory's own: then some may have turned.
    pub fn convert(&mut self, platform: &mut impl Platform, gfn: u64, pages: u64, private: bool) -> Result<(), Status> {
        let (gpa, bytes) = (gfn.checked_mul(PAGE_SIZE), pages.checked_mul(PAGE_SIZE));
        let inside = gpa.zip(bytes).is_some_and(|(gpa, bytes)| bytes > 0 && self.is_whole(gpa, bytes));
        let end = gfn.checked_add(pages).filter(|_| inside).ok_or(Status::Range)?;
        // What was looked up of it may not be looked at again.
        self.epoch += 1;
        let mut at = gfn;
        while at < end {
            let next = ((at / LARGE_PAGES + 1) * LARGE_PAGES).min(end);
            let before: Vec<u64> = (at..next).filter(|page| self.private.has(*page)).collect();
            if private {
                // From here on nothing reaches for them.
                self.private.set(at, next - at, true);
            }
            if let Err(status) = platform.convert(Gfn(at), next - at, private) {
                // Some may have turned, unless memory says that nothing was done.
                if matches!(status, Status::Exhausted | Status::NotFound | Status::Range) {
                    self.private.set(at, next - at, false);
                    before.into_iter().for_each(|page| self.private.set(page, 1, true));
                }
                return Err(status);
            }
            self.private.set(at, next - at, private);
            at = next;
        }
        Ok(())
    }

    /// Backs pages of one chunk that are all private, or none.
    pub(crate) fn populate(&mut self, platform: &mut impl Platform, gfn: u64, pages: u64) -> Result<(), Status> {
        if !self.private.has(gfn) {
            return platform.populate(Gfn(gfn), pages);
        }
        match platform.populate_private(Gfn(gfn), pages) {
            // A memory that was started anew doesn't know what the guest asked for.
            Err(Status::State) => {
                self.tell(platform, gfn & !(LARGE_PAGES - 1))?;
                platform.populate_private(Gfn(gfn), pages)
            }
            answer => answer,
        }
    }

    /// Tells memory which pages of a chunk are private.
    fn tell(&self, platform: &mut impl Platform, chunk: u64) -> Result<(), Status> {
        let mut at = chunk;
        while at < chunk + LARGE_PAGES {
            let run = (at..chunk + LARGE_PAGES).take_while(|page| self.private.has(*page)).count() as u64;
            if run > 0 {
                platform.convert(Gfn(at), run, true)?;
            }
            at += run.max(1);
        }
        Ok(())
    }
}
