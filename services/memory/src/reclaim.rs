//! Taking memory back from dead VMs.

use caisson_proto::abi::{MAX_VIEWS, Status};
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::kernel::{BatchInfo, GuestUnmap, Unmapped, VmKind, VmRelease, VmReport, VmState};
use caisson_proto::layout;
use caisson_proto::memory::Reclaimed;

use crate::{Kernel, Memory, vms_from};

/// Kernel operations in one activation.
const OPERATIONS: u32 = 64;
/// Pages of guest memory that a vmm's window covers; nothing is mapped above.
const GUEST_PAGES: u64 = (layout::USER_END - layout::GUEST) >> 12;

/// How far the dead are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There are none.
    Clear,
    /// There is more to do.
    More,
    /// Their vCPUs must stop first, or the secure processor forget their guests.
    Waits,
}

impl Memory {
    /// Goes on with what dead VMs left, and tells the supervisor once nothing is left.
    pub(crate) fn reclaim(&mut self, kernel: &mut impl Kernel) {
        loop {
            let mut operations = OPERATIONS;
            let progress = self.take_back(&mut operations, kernel);
            if progress == Progress::Waits {
                // Ringing again at once would keep this CPU from the vCPUs.
                kernel.later();
                return;
            }
            if progress == Progress::Clear {
                let open = open(kernel);
                if open == Open::Closing {
                    // The bell of the last acknowledgement brings us back.
                    return;
                }
                // While some are held back, little was freed, as long as there are frames to take.
                if self.stale && open == Open::Nothing || self.knows_little(kernel) {
                    self.begin_scan();
                }
                while self.scan.is_some() && operations > 0 {
                    operations -= 1;
                    self.scan_step(kernel);
                }
                if self.scan.is_none() {
                    if core::mem::take(&mut self.owes_settled) {
                        kernel.settled();
                    }
                    return;
                }
            }
            if kernel.again() {
                return;
            }
        }
    }

    /// Takes back what it can of every dying VM.
    fn take_back(&mut self, operations: &mut u32, kernel: &mut impl Kernel) -> Progress {
        let mut progress = Progress::Clear;
        let mut slot = 0;
        while let Some(report) = dying_from(slot, kernel) {
            slot = report.next;
            self.stale = true;
            match empty(&report, operations, kernel) {
                Progress::Clear => {}
                Progress::More => return Progress::More,
                Progress::Waits => {
                    progress = Progress::Waits;
                    continue;
                }
            }
            if report.kind != VmKind::Plain && !self.platform.has_forgotten(report.vm, kernel) {
                progress = Progress::Waits;
                continue;
            }
            end_event(report.vm, Gfn(0), kernel);
            match kernel.ask(&VmRelease { vm: report.vm }) {
                Ok(unmapped) => {
                    self.platform.gone(report.vm);
                    self.slots.vm_gone(report.vm);
                    self.gmems.vm_gone(report.vm);
                    tell(report.vm, Gfn(0), &unmapped, false, kernel);
                }
                Err(_) => progress = Progress::Waits,
            }
        }
        progress
    }
}

/// Which batches are open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// None.
    Nothing,
    /// Only such as notifier holds back.
    HeldBack,
    /// Some that close soon.
    Closing,
}

/// Looks which batches are open. What is held back is so only as long as there is a VM that could want it, so that everything is
/// free in the end.
fn open(kernel: &mut impl Kernel) -> Open {
    let (mut slot, mut open) = (0, Open::Nothing);
    while let Ok(report) = kernel.ask(&BatchInfo { slot }) {
        if report.kind == VmKind::Plain || report.owed == 0 {
            return Open::Closing;
        }
        open = Open::HeldBack;
        if report.next <= slot {
            break;
        }
        slot = report.next;
    }
    if open == Open::Nothing || vms_from(0, kernel).any(|report| report.state == VmState::Alive) {
        return open;
    }
    kernel.settle();
    if any_open(kernel) { Open::Closing } else { Open::Nothing }
}

/// The next dying VM from a slot on.
fn dying_from(slot: u16, kernel: &mut impl Kernel) -> Option<VmReport> {
    vms_from(slot, kernel).find(|report| report.state == VmState::Dying)
}

/// Unmaps what is left of a dying VM.
fn empty(report: &VmReport, operations: &mut u32, kernel: &mut impl Kernel) -> Progress {
    let mut left = report.pages;
    for view in 0..MAX_VIEWS as u8 {
        let mut gfn = Gfn(0);
        while left > 0 && gfn.0 < GUEST_PAGES {
            if *operations == 0 {
                return Progress::More;
            }
            *operations -= 1;
            let pages = GUEST_PAGES - gfn.0;
            match kernel.ask(&GuestUnmap { vm: report.vm, view, gfn, pages, more: false, broken: false }) {
                Ok(unmapped) if unmapped.next > gfn => {
                    tell(report.vm, gfn, &unmapped, false, kernel);
                    left = left.saturating_sub(unmapped.pages);
                    gfn = unmapped.next;
                }
                // No such view.
                Err(Status::Range) => break,
                _ => return Progress::Waits,
            }
        }
    }
    if left == 0 { Progress::Clear } else { Progress::Waits }
}

/// Tells notifier of frames that left a VM.
pub(crate) fn tell(vm: VmId, gfn: Gfn, unmapped: &Unmapped, more: bool, kernel: &mut impl Kernel) {
    // While an event goes on nobody can do anything about them. A batch of frames that are all lost has to be settled, too.
    let pages = if more && unmapped.waiting == 0 { 0 } else { unmapped.pages.max(unmapped.waiting) };
    if pages == 0 {
        return;
    }
    let reclaimed = Reclaimed { vm: vm.bits(), batch: unmapped.batch.0, gfn: gfn.0, pages };
    if !kernel.post(&reclaimed) {
        kernel.settle();
    }
}

/// The last call of an event: whether there was something to shoot down. A VM without one loses nothing by it.
pub(crate) fn end_event(vm: VmId, gfn: Gfn, kernel: &mut impl Kernel) -> bool {
    match kernel.ask(&GuestUnmap { vm, view: 0, gfn, pages: 0, more: false, broken: false }) {
        Ok(unmapped) => {
            tell(vm, gfn, &unmapped, false, kernel);
            unmapped.waiting > 0
        }
        Err(_) => false,
    }
}

/// Whether any batch is open.
pub(crate) fn any_open(kernel: &mut impl Kernel) -> bool {
    kernel.ask(&BatchInfo { slot: 0 }).is_ok()
}
