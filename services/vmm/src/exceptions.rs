//! Exceptions that the guest gets from the vmm: RF in what a fault pushes, no error code in real mode, and what becomes
//! of an event that a fault broke off.

use caisson_proto::supervisor::CrashKind;
use caisson_proto::vcpu::{Exit, ExitFlags, Groups, Resume, VcpuState};

use crate::exits::{DB, PF, exception};
use crate::platform::{Event, Platform};
use crate::vmm::Vmm;

/// EVENTINJ and EXITINTINFO: it counts; its type, of which 3 is an exception; an error code comes with it.
const VALID: u64 = 1 << 31;
const TYPE: u64 = 7 << 8;
const EXCEPTION: u64 = 3 << 8;
const ERROR_CODE: u64 = 1 << 11;
/// RFLAGS.RF: no instruction breakpoint at the next instruction.
const RESUME: u64 = 1 << 16;
/// CR0.PE.
const PROTECTED: u64 = 1;
/// #DF.
const DF: u8 = 8;
/// #BP and #OF come after their instruction, #DB mostly; nothing comes back from #DF and #MC.
const NO_FAULTS: u32 = 1 << DB | 1 << 3 | 1 << 4 | 1 << DF | 1 << 18;
/// #DE, #TS, #NP, #SS and #GP.
const CONTRIBUTORY: u32 = 1 | 0xf << 10;

/// What becomes of an event whose delivery a fault broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// The fault comes in its place.
    Fault,
    /// #DF does.
    DoubleFault,
    /// The processor shuts down.
    Shutdown,
}

/// Whether this is an event with an exception of this kind.
const fn is_exception(event: u64) -> bool {
    event & (VALID | TYPE) == VALID | EXCEPTION
}

/// Whether the vector of an exception is in this set.
const fn is_in(set: u32, event: u64) -> bool {
    is_exception(event) && event & 0xff < 32 && set >> (event & 0xff) & 1 == 1
}

/// APM volume 2, section 8.2.9: what the first event and the fault on its way are together. An interrupt that a fault
/// broke off is lost, as its acknowledgement went before.
const fn together(first: u64, fault: u64) -> Becomes {
    let serious = is_in(CONTRIBUTORY, fault);
    if is_in(1 << DF, first) && (serious || is_in(1 << PF, fault)) {
        return Becomes::Shutdown;
    }
    let twice = is_in(CONTRIBUTORY, first) && serious || is_in(1 << PF, first) && (serious || is_in(1 << PF, fault));
    if twice { Becomes::DoubleFault } else { Becomes::Fault }
}

impl<P: Platform> Vmm<P> {
    /// Makes what is injected at the end of an exit what the guest must see.
    pub(crate) fn raise(&mut self, at: usize, exit: &Exit, state: &mut VcpuState, mut resume: Resume) -> Resume {
        if !is_exception(resume.inject) || is_in(NO_FAULTS, resume.inject) {
            return resume;
        }
        if exit.flags.contains(ExitFlags::EVENT_PENDING | ExitFlags::INJECTED) {
            self.fill(exit, Groups::EVENTS, state);
            resume.replace = true;
            match together(state.event, resume.inject) {
                Becomes::Fault => {}
                Becomes::DoubleFault => resume.inject = exception(DF, Some(0)),
                Becomes::Shutdown => return self.shut_down(at, exit, state),
            }
        }
        let missing = (Groups::CORE | Groups::CONTROL).difference(resume.groups);
        self.fill(exit, missing, state);
        if missing.contains(Groups::CORE) {
            (state.rip, state.gpr[0]) = (resume.rip, resume.rax);
            resume.groups |= Groups::CORE;
        }
        if state.cr0 & PROTECTED == 0 {
            resume.inject &= u64::from(u32::MAX) & !ERROR_CODE;
        }
        if !is_in(NO_FAULTS, resume.inject) {
            state.rflags |= RESUME;
        }
        resume
    }

    /// A vCPU can't go on.
    #[cold]
    pub(crate) fn shut_down(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        self.note(Event::Shutdown { vcpu: at as u8, rip: exit.rip });
        self.epitaph(exit, state);
        self.crash(CrashKind::TripleFault, at, exit.rip, 0);
        self.stop()
    }
}
