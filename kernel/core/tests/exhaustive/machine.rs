//! What the kernel asks of the board.

use caisson_core::context::Context;
use caisson_core::event::Event;
use caisson_core::machine::{Machine, Mailbox, Mapping, Removed, TablePool};
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{CpuId, Frame, Gfn, Spa};
use caisson_proto::kernel::{Access, Features};
use caisson_proto::rmp::Entry;
use caisson_proto::vcpu::{Exit, Groups, Resume};

use super::board::{ASIDS, FIRST, Mutant, On, PAGES, ROOT, SLOTS};
use super::common::without_the_rest;

/// What somebody broke who handed a frame out too early.
pub const REUSED: &str = "a frame with a dirty line was handed out";

impl Machine for On {
    without_the_rest!();

    fn vcpu_flush(&self, _: Context) {}

    fn asids(&self) -> (u32, u32) {
        // All are of SEV-ES VMs, so that there are few.
        (8, (ASIDS as u32 + 1) << 16 | (ASIDS as u32 + 1))
    }
    fn interrupt_cpu(&self, _: CpuId) {}
    fn relax(&self) {
        unreachable!("nobody waits: each step is done before the next")
    }
    fn log(&self, _: Event) {}
    fn write_back(&self, invalidate: bool) {
        let invalidate = invalidate && !self.board.is(Mutant::TooWeak);
        // What is given up while it is under way it doesn't reach.
        let stale = self.board.truth.borrow().stale;
        let meanwhile = self.board.meanwhile.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        if self.board.is(Mutant::SkipExecution) {
            return;
        }
        let mut truth = self.board.truth.borrow_mut();
        let bit = 1 << self.cpu;
        (truth.dirty[self.cpu], truth.ran[self.cpu]) = (0, 0);
        for slot in 0..SLOTS {
            if let Some(owed) = truth.owed[slot].filter(|owed| owed & bit != 0) {
                truth.owed[slot] = Some(owed & !bit);
                if owed == bit {
                    truth.close(slot, true);
                }
            }
        }
        for (now, begun) in truth.stale.iter_mut().zip(stale) {
            *now &= !(if invalidate { begun & bit } else { 0 });
        }
    }
    fn flush_lines(&self, first: Frame, pages: u64, asid: u32) {
        if asid == 0 && !self.board.is(Mutant::ForgetPlain) {
            for page in (first.0..first.0 + pages).filter_map(|frame| frame.checked_sub(FIRST)) {
                self.board.truth.borrow_mut().plain &= !(1 << page);
            }
        }
    }
    fn mailbox(&self) -> Option<&'static Mailbox> {
        Some(self.board.mailbox)
    }
    fn nested_map(
        &self, root: Frame, gfn: Gfn, frame: Frame, _: u64, _: Access, _: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let page = (frame.0 - FIRST) as usize;
        assert_eq!(gfn.0, page as u64);
        let truth = self.board.truth.borrow();
        if truth.waits[page].is_some() || truth.dirty.iter().any(|dirty| dirty >> page & 1 == 1) {
            self.board.fault.set(Some(REUSED));
        }
        self.board.nested.borrow_mut()[(root.0 - ROOT) as usize][page] = true;
        Ok(())
    }
    fn nested_unmap(&self, root: Frame, from: Gfn, end: Gfn, _: &mut dyn TablePool) -> Result<Option<Removed>, Status> {
        let mapped = &mut self.board.nested.borrow_mut()[(root.0 - ROOT) as usize];
        let found = (from.0..end.0.min(PAGES as u64)).find(|gfn| mapped[*gfn as usize]);
        Ok(found.map(|gfn| {
            mapped[gfn as usize] = false;
            Removed { gfn: Gfn(gfn), frame: Frame(FIRST + gfn), pages: 1 }
        }))
    }
    fn nested_look_up(&self, root: Frame, gfn: Gfn) -> Option<Mapping> {
        let mapped = *self.board.nested.borrow()[(root.0 - ROOT) as usize].get(gfn.0 as usize)?;
        mapped.then_some(Mapping { frame: Frame(FIRST + gfn.0), pages: 1, access: Access::all() })
    }
    fn nested_drop(&self, root: Frame, pool: &mut dyn TablePool) {
        pool.give_back(root);
    }
}
