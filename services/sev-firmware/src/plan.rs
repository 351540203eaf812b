//! What has to be done for a request, step by step.

use caisson_proto::abi::Status;
use caisson_proto::firmware::{FirmwareCall, PlatformCommand, PlatformFact, PlatformState};
use caisson_proto::kernel::VmKind;
use caisson_proto::mailbox;
use heapless::Deque;

use crate::account::Account;
use crate::guests::Phase;

/// Steps at a time.
pub(crate) const STEPS: usize = 16;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bind the VM to the lowest free ASID of its class.
    Bind,
    /// WBINVD on every CPU.
    WriteBack,
    /// DF_FLUSH, as it is called where SNP is initialised and where not.
    Fabric,
    /// A command.
    Ring(u16),
    /// Turn the next chunk of a region private.
    Turn,
    /// Measure the next piece of memory, with this command.
    Update(u16),
    /// Have the processor give a page back.
    Reclaim(Page),
    /// Look what a predecessor left in the row of this ASID, and then at the next.
    Survey(u32),
}

/// A page that the processor is to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// The VM's context.
    Context,
    /// The last of the mailbox's that it has; and then the others.
    Mailbox,
    /// The guest's page at this address.
    Guest(u64),
}

/// Steps to do.
pub(crate) type Steps = Deque<Step, STEPS>;

/// The steps of a request, or why by this service's own account it isn't possible.
pub(crate) fn steps(call: &FirmwareCall, kind: VmKind, account: &mut Account) -> Result<Steps, Status> {
    use FirmwareCall::*;
    use Step::{Bind, Fabric, Ring, Turn, Update, WriteBack};
    let flushed_afterwards = |command| [Ring(command), WriteBack, Fabric];
    Ok(match call {
        PlatformDo(platform) => match platform.command {
            PlatformCommand::Shutdown => list(&[WriteBack, Ring(mailbox::SHUTDOWN)]),
            PlatformCommand::Reset => list(&[Ring(mailbox::PLATFORM_RESET)]),
            PlatformCommand::Flush => list(&[WriteBack, Fabric]),
            PlatformCommand::PekGen => list(&[Ring(mailbox::PEK_GEN)]),
            PlatformCommand::PdhGen => list(&[Ring(mailbox::PDH_GEN)]),
            PlatformCommand::SnpCommit => list(&[Ring(mailbox::SNP_COMMIT)]),
        },
        PlatformRead(read) => list(&[Ring(match read.fact {
            PlatformFact::Status => mailbox::PLATFORM_STATUS,
            PlatformFact::SnpStatus => mailbox::SNP_PLATFORM_STATUS,
            PlatformFact::ChipId => mailbox::GET_ID,
            PlatformFact::PdhExport => mailbox::PDH_CERT_EXPORT,
            PlatformFact::PekCsr => mailbox::PEK_CSR,
        })]),
        Init(_) => list(&flushed_afterwards(mailbox::INIT)),
        InitEx(_) => list(&flushed_afterwards(mailbox::INIT_EX)),
        PekCertImport(_) => list(&[Ring(mailbox::PEK_CERT_IMPORT)]),
        SnpInit(_) => list(&[WriteBack, Ring(mailbox::SNP_INIT_EX), WriteBack, Fabric]),
        SnpShutdownEx(_) => list(&[WriteBack, Fabric, Ring(mailbox::SNP_SHUTDOWN_EX)]),
        SnpConfig(_) => list(&[Ring(mailbox::SNP_CONFIG)]),
        LaunchStart(start) => {
            if account.guests.get(start.vm).is_some_and(|guest| guest.phase != Phase::Bound) {
                return Err(Status::State);
            }
            let launch = [Bind, Ring(mailbox::LAUNCH_START), Ring(mailbox::ACTIVATE)];
            if account.sev == PlatformState::Uninit && kind == VmKind::Sev {
                // The first SEV guest starts the platform, without SEV-ES, if nobody did.
                let [bind, start, activate] = launch;
                list(&[Ring(mailbox::INIT), WriteBack, Fabric, bind, start, activate])
            } else {
                list(&launch)
            }
        }
        SnpLaunchStart(start) => {
            if account.guests.get(start.vm).is_some_and(|guest| guest.phase != Phase::Bound) {
                return Err(Status::State);
            }
            let [create, launch] = [mailbox::SNP_GCTX_CREATE, mailbox::SNP_LAUNCH_START];
            list(&[Bind, Ring(create), Ring(launch), Ring(mailbox::SNP_ACTIVATE)])
        }
        LaunchUpdate(update) => in_phase(account, update.vm, &[Phase::Launching], Update(mailbox::LAUNCH_UPDATE_DATA))?,
        LaunchVmsa(update) => in_phase(account, update.vm, &[Phase::Launching], Update(mailbox::LAUNCH_UPDATE_VMSA))?,
        LaunchMeasure(call) => in_phase(account, call.vm, &[Phase::Launching], Ring(mailbox::LAUNCH_MEASURE))?,
        LaunchSecret(call) => in_phase(account, call.vm, &[Phase::Measured], Ring(mailbox::LAUNCH_SECRET))?,
        LaunchFinish(call) => in_phase(account, call.vm, &[Phase::Measured], Ring(mailbox::LAUNCH_FINISH))?,
        Attestation(call) => {
            in_phase(account, call.vm, &[Phase::Measured, Phase::Running], Ring(mailbox::ATTESTATION))?
        }
        GuestStatus(call) => {
            let command = if kind == VmKind::SevSnp { mailbox::SNP_GUEST_STATUS } else { mailbox::GUEST_STATUS };
            let phases = [Phase::Launching, Phase::Measured, Phase::Running, Phase::Unknown];
            in_phase(account, call.vm, &phases, Ring(command))?
        }
        SnpLaunchUpdate(update) => {
            in_phase(account, update.vm, &[Phase::Launching], Update(mailbox::SNP_LAUNCH_UPDATE))?
        }
        SnpLaunchFinish(call) => in_phase(account, call.vm, &[Phase::Launching], Ring(mailbox::SNP_LAUNCH_FINISH))?,
        SnpGuestRequest(call) => in_phase(account, call.vm, &[Phase::Running], Ring(mailbox::SNP_GUEST_REQUEST))?,
        Decommission(end) => match account.guests.get(end.vm) {
            Some(guest) if guest.phase != Phase::Bound => list(ending(kind, true)),
            _ => Steps::new(),
        },
        RegisterRegion(region) => {
            let new = crate::regions::Region { vm: region.vm, gfn: region.gfn, pages: region.pages };
            account.regions.addable(new)?;
            if region.known {
                account.regions.add(new);
                Steps::new()
            } else {
                list(&[Turn])
            }
        }
        PlatformStatus(_) | JobResult(_) | UnregisterRegion(_) => Steps::new(),
    })
}

/// How the processor is made to forget a guest, with or without its ASID.
pub(crate) fn ending(kind: VmKind, active: bool) -> &'static [Step] {
    use Step::Ring;
    match (kind, active) {
        (VmKind::SevSnp, _) => &[Ring(mailbox::SNP_DECOMMISSION), Step::Reclaim(Page::Context)],
        (_, true) => &[Ring(mailbox::DEACTIVATE), Ring(mailbox::DECOMMISSION)],
        (_, false) => &[Ring(mailbox::DECOMMISSION)],
    }
}

pub(crate) fn list(steps: &[Step]) -> Steps {
    let mut list = Steps::new();
    for step in steps {
        // There is room: no list above is as long.
        let _ = list.push_back(*step);
    }
    list
}

fn in_phase(account: &Account, vm: caisson_proto::addr::VmId, phases: &[Phase], step: Step) -> Result<Steps, Status> {
    let phase = account.guests.get(vm).map(|guest| guest.phase);
    if phase.is_some_and(|phase| phases.contains(&phase)) { Ok(list(&[step])) } else { Err(Status::State) }
}
