//! Events: the memory behind a range of host addresses is about to change.
//!
//! Work is done if and only if a slot shows some of the range. Most ranges that change in a machine no slot shows: such an
//! event is spurious, and answered from what lies in memory already, without a lock, a message, or a counter that
//! changes. [`Slots::is_spurious`] needs a shared reference only, so it holds for any number of readers.
//!
//! A real one begins (the machine refuses commits in the hull from now on), unmaps slot by slot at most so many pages a call, and
//! ends. One flush of the VM's TLBs covers everything that a call unmapped, in however many slots. Its VM hears of it at
//! the very end, when nothing is held any more.

use core::ops::Range;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, VmId};

use super::{Error, HostRange, Slots, shown_at};

/// Slots, or parts of them, that a call looks at.
pub const OPERATIONS: u32 = 64;

/// What was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// So many pages.
    pub pages: u64,
    /// The first guest frame that wasn't looked at.
    pub next: Gfn,
}

/// What carries an event out.
pub trait Machine {
    /// Guest frames from `start` to before `end` are about to change.
    ///
    /// # Errors
    /// Why that isn't possible now.
    fn begin(&mut self, vm: VmId, start: Gfn, end: Gfn) -> Result<(), Status>;
    /// Unmaps shared pages, at most `most`.
    ///
    /// # Errors
    /// Why that isn't possible now; nothing was unmapped.
    fn unmap(&mut self, vm: VmId, gfn: Gfn, pages: u64, most: u64) -> Result<Taken, Status>;
    /// No CPU may use translations any more of what was unmapped.
    fn flush(&mut self, vm: VmId);
    /// The change is over.
    fn end(&mut self, vm: VmId);
    /// A VM lost memory, or would have if it had been mapped: what is owed for that?
    fn reclaimed(&mut self, vm: VmId);
}

/// How far an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No slot shows this range.
    Spurious,
    /// Ask again with the same range.
    More,
    /// It is done.
    Done,
}

/// An event that has begun.
#[derive(Clone, Debug)]
pub(super) struct Open {
    range: HostRange,
    /// Slots that are done, in the order of their host addresses: nobody can change them meanwhile.
    slots: usize,
    /// Pages of the present one that are done.
    pages: u64,
    /// In which everything lies that slots show of it: from here to before there.
    hull: (Gfn, Gfn),
}

impl Open {
    /// Whether a guest frame may be about to change.
    pub const fn covers(&self, gfn: Gfn) -> bool {
        self.hull.0.0 <= gfn.0 && gfn.0 < self.hull.1.0
    }
}

impl<const N: usize, const G: usize> Slots<N, G> {
    /// Whether no slot shows anything of a range.
    #[inline]
    pub fn is_spurious(&self, range: &HostRange) -> bool {
        match self.near(range) {
            Some((low, high)) => !self.hosts.any(&range.words(), low, high),
            None => true,
        }
    }

    /// Between which places of the index the last slot is that begins before a range's end; `None` if the directory knows that
    /// no slot shows any of it.
    #[inline]
    fn near(&self, range: &HostRange) -> Option<(usize, usize)> {
        let region = self.regions.get(usize::from(range.region.0))?;
        if range.is_empty() || range.pages.start >= region.pages || !region.directory.may_overlap(&range.pages) {
            return None;
        }
        let (low, high) = region.directory.around(range.pages.end.min(region.pages));
        Some((region.first + low, region.first + high))
    }

    /// Takes what a VM has behind a range, at most `most` pages a call; the same range goes on with it.
    ///
    /// # Errors
    /// [`Error::Busy`] while another range of the VM is under way; [`Error::Machine`] with what was done remembered: ask again.
    #[inline]
    pub fn event(&mut self, range: &HostRange, most: u64, machine: &mut impl Machine) -> Result<Answer, Error> {
        let Some((low, high)) = self.near(range) else { return Ok(Answer::Spurious) };
        let words = range.words();
        if !self.hosts.any(&words, low, high) {
            return Ok(Answer::Spurious);
        }
        self.take_behind(range, most, self.hosts.window(&words, low, high), machine)
    }

    /// The same of a range that slots show, which are in this window of the index.
    fn take_behind(
        &mut self, range: &HostRange, most: u64, window: Range<usize>, machine: &mut impl Machine,
    ) -> Result<Answer, Error> {
        let vm = self.regions.get(usize::from(range.region.0)).and_then(|of| of.vm).ok_or(Error::NoRegion)?;
        let (mut slots, mut pages, hull) = match &self.vm(vm)?.open {
            Some(open) if open.range != *range => return Err(Error::Busy),
            Some(open) => (open.slots, open.pages, open.hull),
            None => {
                let hull = self.hull(range, window.clone());
                machine.begin(vm, hull.0, hull.1).map_err(Error::Machine)?;
                self.vm_mut(vm)?.requests += 1;
                (0, 0, hull)
            }
        };
        let (mut left, mut operations, mut failed, mut more) = (most, OPERATIONS, None, false);
        for place in self.hosts.overlapping(range.words().start, window).skip(slots) {
            let Some(slot) = self.pool.get(usize::from(place)) else { break };
            let (from, to) = (slot.host.page.max(range.pages.start), slot.host_pages().end.min(range.pages.end));
            while from + pages < to && failed.is_none() && left > 0 && operations > 0 {
                operations -= 1;
                let gfn = shown_at(slot, from + pages);
                match machine.unmap(vm, gfn, to - from - pages, left) {
                    Ok(taken) if taken.next > gfn => {
                        left = left.saturating_sub(taken.pages);
                        pages += taken.next.0 - gfn.0;
                    }
                    // A machine that doesn't advance would never end.
                    Ok(_) => failed = Some(Status::Busy),
                    Err(status) => failed = Some(status),
                }
            }
            if from + pages < to {
                more = true;
                break;
            }
            (slots, pages) = (slots + 1, 0);
        }
        if left < most {
            machine.flush(vm);
        }
        let of = self.vm_mut(vm)?;
        of.flushes += u64::from(left < most);
        of.open = more.then(|| Open { range: range.clone(), slots, pages, hull });
        if let Some(status) = failed {
            return Err(Error::Machine(status));
        }
        if more {
            return Ok(Answer::More);
        }
        machine.end(vm);
        machine.reclaimed(vm);
        Ok(Answer::Done)
    }

    /// The guest frames in which everything lies that slots show of a range.
    fn hull(&self, range: &HostRange, window: Range<usize>) -> (Gfn, Gfn) {
        let places = self.hosts.overlapping(range.words().start, window);
        let slots = places.filter_map(|place| self.pool.get(usize::from(place)));
        slots.fold((Gfn(u64::MAX), Gfn(0)), |(low, high), slot| {
            let from = shown_at(slot, slot.host.page.max(range.pages.start));
            let to = shown_at(slot, slot.host_pages().end.min(range.pages.end));
            (low.min(from), high.max(to))
        })
    }
}
