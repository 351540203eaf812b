//! What can be said of a request when it comes: who may ask it, of which VM, and whether its numbers are possible. What depends
//! on what comes before it is decided when its turn has come.

use caisson_proto::abi::Status;
use caisson_proto::addr::{MAX_PHYS_BITS, PAGE_SIZE, ServiceId, VmId};
use caisson_proto::firmware::{FirmwareCall, JOB_PAGES, PlatformFact, REGION_PAGES, SECRET};
use caisson_proto::kernel::{VmInfo, VmKind, VmState};

use crate::Kernel;
use crate::guests::Guests;

/// Bit of a guest's policy: SEV-ES.
const POLICY_ES: u32 = 1 << 2;
/// Memory is measured and encrypted in blocks of so many bytes.
const BLOCK: u64 = 16;
const PAGES: u64 = 1 << (MAX_PHYS_BITS - 12);

/// What a request is about.
pub(crate) enum Subject {
    /// The platform, and memory, notifier and their like ask.
    Platform,
    /// The platform, and anybody may ask.
    Fact,
    /// A VM.
    Vm(VmId),
}

pub(crate) fn subject(call: &FirmwareCall) -> Subject {
    use FirmwareCall::*;
    match call {
        PlatformStatus(_) | JobResult(_) => Subject::Fact,
        PlatformRead(read) if read.fact != PlatformFact::PekCsr => Subject::Fact,
        PlatformRead(_) | PlatformDo(_) | Init(_) | InitEx(_) | PekCertImport(_) | SnpInit(_) | SnpShutdownEx(_)
        | SnpConfig(_) => Subject::Platform,
        LaunchStart(call) => Subject::Vm(call.vm),
        LaunchUpdate(call) => Subject::Vm(call.vm),
        LaunchVmsa(call) => Subject::Vm(call.vm),
        LaunchMeasure(call) => Subject::Vm(call.vm),
        LaunchSecret(call) => Subject::Vm(call.vm),
        LaunchFinish(call) => Subject::Vm(call.vm),
        Attestation(call) => Subject::Vm(call.vm),
        GuestStatus(call) => Subject::Vm(call.vm),
        Decommission(call) => Subject::Vm(call.vm),
        SnpLaunchStart(call) => Subject::Vm(call.vm),
        SnpLaunchUpdate(call) => Subject::Vm(call.vm),
        SnpLaunchFinish(call) => Subject::Vm(call.vm),
        SnpGuestRequest(call) => Subject::Vm(call.vm),
        RegisterRegion(call) => Subject::Vm(call.vm),
        UnregisterRegion(call) => Subject::Vm(call.vm),
    }
}

/// The VM that a request is about.
pub(crate) fn vm(call: &FirmwareCall) -> Option<VmId> {
    if let Subject::Vm(vm) = subject(call) { Some(vm) } else { None }
}

/// Checks a request; the kind of its VM.
///
/// # Errors
/// `Denied`, `NotFound`, `State` for a VM that is dying, `Unsupported` for one of another kind, `Range`.
pub(crate) fn check(
    call: &FirmwareCall, sender: ServiceId, platform: bool, guests: &Guests, kernel: &mut impl Kernel,
) -> Result<VmKind, Status> {
    let kind = match subject(call) {
        Subject::Fact => VmKind::Plain,
        Subject::Platform if platform => VmKind::Plain,
        Subject::Platform => return Err(Status::Denied),
        Subject::Vm(vm) => vm_kind(call, vm, sender, platform, guests, kernel)?,
    };
    numbers(call, kind)?;
    Ok(kind)
}

fn vm_kind(
    call: &FirmwareCall, vm: VmId, sender: ServiceId, platform: bool, guests: &Guests, kernel: &mut impl Kernel,
) -> Result<VmKind, Status> {
    let ends = matches!(call, FirmwareCall::Decommission(_) | FirmwareCall::UnregisterRegion(_));
    let report = kernel.ask(&VmInfo { slot: vm.index() as u16 }).ok().filter(|report| report.vm == vm);
    let Some(report) = report else {
        // The kernel has let go of it, and the processor may not have.
        let known = guests.get(vm).filter(|_| platform && ends);
        return known.map(|guest| guest.kind).ok_or(Status::NotFound);
    };
    if report.handler != sender && !platform {
        return Err(Status::Denied);
    }
    if report.state == VmState::Dying && !ends {
        return Err(Status::State);
    }
    if fits(call, report.kind) { Ok(report.kind) } else { Err(Status::Unsupported) }
}

/// Whether a request is one about VMs of this kind.
fn fits(call: &FirmwareCall, kind: VmKind) -> bool {
    use FirmwareCall::*;
    match call {
        LaunchStart(_) | LaunchUpdate(_) | LaunchMeasure(_) | LaunchSecret(_) | LaunchFinish(_) | Attestation(_) => {
            matches!(kind, VmKind::Sev | VmKind::SevEs)
        }
        LaunchVmsa(_) => kind == VmKind::SevEs,
        SnpLaunchStart(_) | SnpLaunchUpdate(_) | SnpLaunchFinish(_) | SnpGuestRequest(_) => kind == VmKind::SevSnp,
        _ => kind != VmKind::Plain,
    }
}

fn numbers(call: &FirmwareCall, kind: VmKind) -> Result<(), Status> {
    use FirmwareCall::*;
    let donation = |frame: u64, pages: u64| pages < 1 << 20 && frame.saturating_add(pages) <= PAGES;
    let blocks = |gpa: u64, bytes: u64, most: u64| {
        let end = gpa.saturating_add(bytes);
        bytes > 0 && bytes <= most && gpa.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK) && end <= PAGES << 12
    };
    let pages = |gfn: u64, pages: u64, most: u64| pages > 0 && pages <= most && gfn + pages <= PAGES;
    let right = match call {
        Init(init) => donation(init.frame.0, init.pages),
        InitEx(init) => donation(init.frame.0, init.pages),
        LaunchStart(start) => (start.policy & POLICY_ES != 0) == (kind == VmKind::SevEs),
        LaunchUpdate(update) => blocks(update.gpa.0, update.bytes, JOB_PAGES * PAGE_SIZE),
        LaunchSecret(secret) => blocks(secret.gpa.0, u64::from(secret.bytes), u64::from(SECRET)),
        SnpLaunchUpdate(update) => pages(update.gfn.0, update.pages, JOB_PAGES) && update.permissions & !0x0f_0f0f == 0,
        RegisterRegion(region) => pages(region.gfn.0, region.pages, REGION_PAGES),
        _ => true,
    };
    if right { Ok(()) } else { Err(Status::Range) }
}
