//! Events: pages are taken in several steps, and nobody pays for them before the last one.

use std::sync::atomic::Ordering::SeqCst;

use caisson_core::batches::Payable;
use caisson_proto::addr::{BatchId, Gfn, VmId};
use caisson_proto::kernel::GuestUnmap;

use super::board::{Board, CPUS, MEMORY, Mutant, cpus, slot_of};
use super::state::Small;

fn of(vm: usize) -> VmId {
    VmId::new(vm as u16, 0)
}

impl Small {
    fn held(board: &Board, vm: usize) -> Option<BatchId> {
        board.tables(|tables| tables.batches.held(of(vm)))
    }

    /// The slot of what a VM's event took, if one goes on.
    pub fn event(&self, board: &Board, vm: usize) -> Option<u8> {
        Self::held(board, vm).map(|batch| slot_of(self.blocked(), batch) as u8)
    }

    /// CPUs that owe for an encrypted VM.
    fn owing(&self, board: &Board, vm: usize) -> u8 {
        let ran = board.truth.borrow().ran;
        (0..CPUS).filter(|cpu| self.encrypted(vm) && ran[*cpu] >> vm & 1 == 1).fold(0, |owed, cpu| owed | 1 << cpu)
    }

    /// Takes a page in an event.
    pub fn unmap_more(&self, board: &'static Board, vm: usize, page: usize) {
        let gfn = Gfn(page as u64);
        let request = GuestUnmap { vm: of(vm), view: 0, gfn, pages: 1, more: true, broken: false };
        let batch = board.ask(0, MEMORY, &request).unwrap().batch;
        let slot = slot_of(self.blocked(), batch);
        let owing = self.owing(board, vm);
        let mut truth = board.truth.borrow_mut();
        (truth.owed[slot], truth.held[slot]) = (Some(0), true);
        truth.waits[page] = Some(slot as u8);
        truth.plain &= !(1 << page);
        drop(truth);
        board.tables(|tables| match board.mutant.get() {
            Some(Mutant::HeldIsPaid) => drop(tables.batches.release(batch, &cpus(0))),
            Some(Mutant::SampleEarly) => {
                let _ = tables.batches.open(of(vm), self.vms[vm], &cpus(owing), Payable::Never);
            }
            _ => {}
        });
    }

    /// The last step of an event, which takes nothing.
    pub fn end(&self, board: &'static Board, vm: usize, cpu: usize) {
        let Some(batch) = Self::held(board, vm).filter(|_| !board.is(Mutant::NeverEnd)) else { return };
        let slot = slot_of(self.blocked(), batch);
        let rows = |cpu: usize| &board.kernel.cpus[cpu].ran;
        let were: [u64; CPUS] = std::array::from_fn(|cpu| rows(cpu).load(SeqCst));
        if board.is(Mutant::SampleEarly) {
            (0..CPUS).for_each(|cpu| rows(cpu).store(0, SeqCst));
        }
        let end = GuestUnmap { vm: of(vm), view: 0, gfn: Gfn(0), pages: 0, more: false, broken: false };
        assert_eq!(board.ask(cpu, MEMORY, &end).unwrap().batch, batch);
        (0..CPUS).for_each(|cpu| rows(cpu).store(were[cpu], SeqCst));
        let owing = self.owing(board, vm);
        let mut truth = board.truth.borrow_mut();
        (truth.owed[slot], truth.held[slot]) = (Some(owing), false);
    }
}
