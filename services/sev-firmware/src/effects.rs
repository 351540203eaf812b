//! What a command's answer changes in the account.

use caisson_proto::abi::Status;
use caisson_proto::addr::VmId;
use caisson_proto::firmware::{Cause, FirmwareCall, PlatformState};
use caisson_proto::kernel::{AsidInfo, AsidState, VmKind};
use caisson_proto::mailbox;

use crate::area::{get, put};
use crate::asids::handle_is_new;
use crate::engine::Failure;
use crate::plan::{Page, ending};
use crate::shape::{GUEST_STATUS, PLATFORM_STATUS};
use crate::steps::is_flush;
use crate::{Firmware, Kernel, Note, Phase, status};

impl Firmware {
    /// The processor answered.
    pub(crate) fn answered(&mut self, number: u16, firmware: u16, kernel: &mut impl Kernel) {
        self.keep(number, firmware);
        let result = if firmware == status::SUCCESS {
            self.succeeded(number, kernel)
        } else {
            let status = if is_flush(number) { Status::Busy } else { status::told(firmware) };
            Err(Failure { cause: Cause::Processor, status, command: number, firmware })
        };
        if let Err(failure) = result {
            self.failed(failure, kernel);
        }
    }

    /// Keeps what the answer gives, whatever its status: the processor's output is valid with errors, too.
    fn keep(&mut self, number: u16, firmware: u16) {
        let Some(current) = self.engine.current.as_mut().filter(|current| !current.failed) else { return };
        (current.report.command, current.report.firmware) = (number, firmware);
        let (buffer, data) = (self.area.buffer(), self.area.data());
        let into = self.jobs.data_mut(current.slot);
        match number {
            mailbox::PLATFORM_STATUS => put(into, 0, buffer.get(..PLATFORM_STATUS).unwrap_or_default()),
            mailbox::GUEST_STATUS => put(into, 0, buffer.get(4..4 + GUEST_STATUS).unwrap_or_default()),
            _ if data.is_empty() => return,
            _ => put(into, 0, data),
        }
        let told = match number {
            mailbox::GET_ID => u32::from_le_bytes(get(buffer, 8)) as usize,
            _ => current.gives,
        };
        current.report.bytes = told.min(current.gives) as u32;
    }

    fn succeeded(&mut self, number: u16, kernel: &mut impl Kernel) -> Result<(), Failure> {
        let Some(current) = &mut self.engine.current else { return Ok(()) };
        let (vm, asid) = (current.vm, current.asid);
        match number {
            mailbox::INIT | mailbox::INIT_EX => self.account.sev = PlatformState::Init,
            mailbox::SHUTDOWN => {
                self.account.leaked.forgive(false);
                self.shut_down(VmKind::Sev, kernel);
                self.account.sev = PlatformState::Uninit;
            }
            mailbox::SNP_INIT_EX => self.account.snp = true,
            mailbox::SNP_SHUTDOWN_EX => {
                self.account.snp = false;
                self.account.leaked.forgive(true);
                self.shut_down(VmKind::SevSnp, kernel);
            }
            mailbox::PLATFORM_STATUS => {
                let [major, minor, state, _, _, _, _, build] = get(self.area.buffer(), 0);
                kernel.note(Note::Platform { major, minor, build, state });
                let states = [PlatformState::Uninit, PlatformState::Init, PlatformState::Working];
                self.account.sev = states.get(usize::from(state)).copied().unwrap_or(PlatformState::Unknown);
            }
            mailbox::SNP_PLATFORM_STATUS => self.account.snp = get(self.area.data(), 2) == [1],
            mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH => self.flushes += 1,
            mailbox::LAUNCH_START | mailbox::SNP_GCTX_CREATE => {
                if !handle_is_new(asid, self.classes, kernel) {
                    // To undo it could end another guest. Nobody can say what this ASID's guest is.
                    let kind = current.kind;
                    self.account.guests.remove(vm);
                    self.leak(asid, kind, kernel);
                    return Err(Failure {
                        cause: Cause::Processor,
                        status: Status::State,
                        command: number,
                        firmware: status::SUCCESS,
                    });
                }
                current.undo = ending(current.kind, false);
                if number == mailbox::LAUNCH_START {
                    self.account.sev = PlatformState::Working;
                }
                self.account.guests.set_phase(vm, Phase::Launching);
            }
            mailbox::LAUNCH_UPDATE_DATA | mailbox::LAUNCH_UPDATE_VMSA | mailbox::SNP_LAUNCH_UPDATE => {
                self.updated(number);
            }
            mailbox::LAUNCH_SECRET => {
                if let Some(FirmwareCall::LaunchSecret(secret)) = current.call {
                    current.report.done = u64::from(secret.bytes);
                }
            }
            mailbox::LAUNCH_MEASURE => self.account.guests.set_phase(vm, Phase::Measured),
            mailbox::LAUNCH_FINISH | mailbox::SNP_LAUNCH_FINISH => self.account.guests.set_phase(vm, Phase::Running),
            mailbox::GUEST_STATUS => {
                let [state] = get(self.area.buffer(), 12);
                let phases = [Phase::Unknown, Phase::Launching, Phase::Measured, Phase::Running];
                self.told_phase(vm, phases.get(usize::from(state)));
            }
            mailbox::SNP_GUEST_STATUS => {
                let [state] = get(self.area.data(), 12);
                self.told_phase(vm, [Phase::Unknown, Phase::Launching, Phase::Running].get(usize::from(state)));
            }
            mailbox::SNP_PAGE_RECLAIM if self.engine.reclaims != Page::Context => {}
            mailbox::DECOMMISSION | mailbox::SNP_DECOMMISSION | mailbox::SNP_PAGE_RECLAIM => {
                self.ended(vm, asid, kernel);
            }
            _ => {}
        }
        Ok(())
    }

    fn told_phase(&mut self, vm: VmId, phase: Option<&Phase>) {
        self.account.guests.set_phase(vm, phase.copied().unwrap_or(Phase::Unknown));
    }

    /// The processor has forgotten a guest. Its VM may still have the ASID.
    fn ended(&mut self, vm: VmId, asid: u32, kernel: &mut impl Kernel) {
        let bound = kernel.ask(&AsidInfo { asid }).is_ok_and(|row| row.state == AsidState::Bound && row.vm == vm);
        if bound {
            self.account.guests.set_phase(vm, Phase::Bound)
        } else {
            self.account.guests.remove(vm)
        }
        let known = |guest: &crate::Guest| guest.kind != VmKind::SevSnp && guest.phase != Phase::Bound;
        if self.account.sev == PlatformState::Working && !self.account.guests.all().any(known) {
            self.account.sev = PlatformState::Init;
        }
    }

    /// The processor has forgotten every guest of a family.
    fn shut_down(&mut self, family: VmKind, kernel: &mut impl Kernel) {
        let snp = family == VmKind::SevSnp;
        let before = self.account.guests.clone();
        for guest in before.all().filter(|guest| (guest.kind == VmKind::SevSnp) == snp) {
            self.ended(guest.vm, guest.asid, kernel);
        }
    }

    /// An ASID is never used again.
    pub(crate) fn leak(&mut self, asid: u32, kind: VmKind, kernel: &mut impl Kernel) {
        self.account.leaked.leak(asid, kind);
        kernel.note(Note::LeakedAsid(asid));
    }

    /// What a failure loses for good.
    pub(crate) fn count_leaks(&mut self, failure: Failure, kernel: &mut impl Kernel) {
        let Some(current) = &self.engine.current else { return };
        let (vm, asid, kind) = (current.vm, current.asid, current.kind);
        if failure.cause != Cause::Processor {
            return;
        }
        match failure.command {
            mailbox::DEACTIVATE | mailbox::DECOMMISSION | mailbox::SNP_DECOMMISSION => {
                self.leak(asid, kind, kernel);
                self.account.guests.remove(vm);
            }
            // By the kernel's account it was free: whoever is right, it is no use.
            mailbox::ACTIVATE | mailbox::SNP_ACTIVATE
                if matches!(failure.firmware, status::ASID_OWNED | status::INVALID_ASID) =>
            {
                self.leak(asid, kind, kernel);
            }
            mailbox::SNP_PAGE_RECLAIM => {
                self.account.leaked_pages += 1;
                if self.engine.reclaims == Page::Context {
                    self.ended(vm, asid, kernel);
                }
                kernel.note(Note::LeakedPage);
            }
            _ => {}
        }
    }
}
