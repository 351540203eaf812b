//! What a death means: pure judgement.

use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{FaultKind, ServiceReport, ServiceState};
use caisson_proto::supervisor::{ExitKind, Notice, verdict};
use caisson_proto::wire::Field;

/// What is to be done about a dead service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it again at once.
    Restart,
    /// A vmm whose guest asked for a reset: start it again when the old VM's memory is free.
    Reset,
    /// A vmm that is over, with this [`verdict`].
    Bury(u8),
}

/// How the service exited; `None` if it didn't, or with a number that is no [`ExitKind`].
pub fn exit_kind(report: &ServiceReport) -> Option<ExitKind> {
    (report.state == ServiceState::Exited).then(|| ExitKind::from_word(report.code)).flatten()
}

/// What is known of the death of a supervisor by its successor, whose own report took that one's place. The kernel's
/// log tells more.
pub const fn predecessor(own: ServiceId) -> ServiceReport {
    let (state, fault) = (ServiceState::Faulted, FaultKind::None);
    ServiceReport { id: own, state, fault, code: 0, rip: 0, address: 0, rsp: 0, client: 0 }
}

/// Whether this state is a death.
pub const fn is_dead(state: ServiceState) -> bool {
    matches!(state, ServiceState::Faulted | ServiceState::Exited | ServiceState::Killed)
}

/// What to do about a death.
pub fn decide(is_vmm: bool, report: &ServiceReport) -> Decision {
    if !is_vmm {
        return Decision::Restart;
    }
    match exit_kind(report) {
        Some(ExitKind::Reset) => Decision::Reset,
        // What a test found is no business of the machine's: the notice carries it.
        Some(ExitKind::PoweredOff | ExitKind::TestEnded) => Decision::Bury(verdict::CLEAN),
        Some(ExitKind::Crashed) => Decision::Bury(verdict::GUEST_CRASHED),
        Some(ExitKind::BadSetup) => Decision::Bury(verdict::BAD_SETUP),
        Some(ExitKind::Panicked) | None => Decision::Bury(verdict::FAULTED),
    }
}

/// The worse of two verdicts. A fault of ours is worst, as it casts doubt on all else; then a setup that didn't
/// come about, then a guest's crash.
pub fn worse(a: u8, b: u8) -> u8 {
    const fn rank(verdict: u8) -> u8 {
        match verdict {
            verdict::CLEAN => 0,
            verdict::GUEST_CRASHED => 1,
            verdict::BAD_SETUP => 2,
            _ => 3,
        }
    }
    if rank(b) > rank(a) { b } else { a }
}

/// The record of a death for the host.
pub fn notice(report: &ServiceReport, restarted: bool) -> Notice {
    let kind = match report.state {
        ServiceState::Exited => u8::try_from(report.code).unwrap_or(u8::MAX),
        ServiceState::Faulted => report.fault as u8,
        _ => FaultKind::None as u8,
    };
    Notice {
        state: report.state as u8,
        kind,
        slot: report.id.index() as u16,
        action: u8::from(restarted),
        spare: [0; 3],
        code: report.code,
        rip: report.rip,
        address: report.address,
    }
}
