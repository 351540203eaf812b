//! After a restart: what a predecessor left is found in the kernel's table of ASIDs, and asked of the processor.
//!
//! Guests are taken over. What was under way is ended where nobody else would: a launch that came to a handle and not to its
//! activation, an end that came to the ASID and not to the handle, a guest whose VM is gone. Clients send again what only they
//! know: their regions, and what they have no result of.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Tsc, VmId};
use caisson_proto::firmware::{Life, SevSupport};
use caisson_proto::kernel::{AsidInfo, AsidReport, AsidState, MailboxState, VmInfo, VmKind};
use caisson_proto::mailbox;

use crate::asids::unforgotten;
use crate::engine::{Current, MAILBOX, Wait};
use crate::plan::{self, Step};
use crate::{Firmware, Guest, Kernel, Phase};

impl Firmware {
    /// Begins: a command of a predecessor's may be under way.
    pub(crate) fn begin(&mut self, now: Tsc, kernel: &mut impl Kernel) {
        self.engine.life = Life::Starting;
        match self.take(kernel) {
            Ok(report) if report.state == MailboxState::Busy => self.wait_for(Wait::Predecessor, now, kernel),
            // What had ended is taken now; its client asks again.
            Ok(_) => {
                self.survey();
                self.run(now, kernel);
            }
            // There is no processor, or this service may not ask it.
            Err(_) => {
                self.engine.life = Life::Ready;
                self.support = SevSupport::None;
            }
        }
    }

    /// Asks the processor how it stands, and then looks at each ASID.
    pub(crate) fn survey(&mut self) {
        let steps = [
            MAILBOX,
            Step::Ring(mailbox::PLATFORM_STATUS),
            Step::Survey(0),
            Step::Ring(mailbox::SNP_PLATFORM_STATUS),
            Step::Survey(1),
        ];
        self.engine.current = Some(Current { steps: plan::list(&steps), ..Current::new() });
    }

    /// Looks at the row of an ASID. Row 0, which nobody has, only separates one question from the next.
    pub(crate) fn look_at(&mut self, asid: u32, kernel: &mut impl Kernel) {
        if asid == 0 || asid >= self.classes.end() {
            return;
        }
        self.first(&[Step::Survey(asid + 1)]);
        let Ok(row) = kernel.ask(&AsidInfo { asid }) else { return };
        let Some(current) = &mut self.engine.current else { return };
        (current.vm, current.kind, current.asid) = (row.vm, row.kind, asid);
        current.given_up = row.state != AsidState::Active;
        let steps = self.take_over(asid, &row, kernel);
        self.first(steps);
    }

    /// Takes over whoever has an ASID; what has to be asked or done about it.
    fn take_over(&mut self, asid: u32, row: &AsidReport, kernel: &mut impl Kernel) -> &'static [Step] {
        let (vm, kind) = (row.vm, row.kind);
        if unforgotten(row) {
            // It was given up, so the processor only has to forget the rest. An SNP guest it may have forgotten already.
            return plan::ending(kind, false);
        }
        let active = match row.state {
            AsidState::Active => true,
            AsidState::Bound => false,
            AsidState::Free | AsidState::Dirty | AsidState::Flushed => return &[],
        };
        if gone(vm, kernel) {
            return if row.handle == 0 { &[] } else { plan::ending(kind, active) };
        }
        let phase = if row.handle == 0 { Phase::Bound } else { Phase::Unknown };
        self.account.guests.add(Guest { vm, kind, asid, phase });
        match (row.handle, active, kind) {
            (0, _, _) => &[],
            (_, false, _) => plan::ending(kind, false),
            (_, true, VmKind::SevSnp) => &[Step::Ring(mailbox::SNP_GUEST_STATUS)],
            (_, true, _) => &[Step::Ring(mailbox::GUEST_STATUS)],
        }
    }
}

/// Whether the kernel has let go of a VM.
fn gone(vm: VmId, kernel: &mut impl Kernel) -> bool {
    match kernel.ask(&VmInfo { slot: vm.index() as u16 }) {
        Ok(report) => report.vm != vm,
        Err(status) => status == Status::NotFound,
    }
}
