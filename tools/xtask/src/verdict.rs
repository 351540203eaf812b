//! How a run ended: from QEMU's exit status and from what the supervisor told on the system channel.

use std::process::ExitStatus;

use caisson_proto::kernel::{FaultKind, ServiceState};
use caisson_proto::supervisor::{CrashKind, ExitKind, Notice, SetupError, verdict};
use caisson_proto::wire::Field;
use zerocopy::FromBytes;

use crate::failure::{Failure, Status};
use crate::logs::Line;

/// Collects notices.
#[derive(Debug)]
pub struct Notices {
    services: Vec<String>,
    guests: Vec<Option<String>>,
    line: Vec<u8>,
    told: Vec<(Status, String)>,
    /// What a guest wrote to its debug exit.
    pub test_ended: Option<u64>,
}

impl Notices {
    /// For services given by name and, for a vmm, its guest's name, in the order of their slots.
    pub fn new(services: Vec<String>, guests: Vec<Option<String>>) -> Self {
        Self { services, guests, line: Vec::new(), told: Vec::new(), test_ended: None }
    }

    /// Bytes of the system channel; returns what they tell, in words.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut words = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    if let Some(notice) = unhex(&line).as_deref().and_then(|b| Notice::read_from_bytes(b).ok()) {
                        let (status, text) = self.tell(&notice);
                        if ExitKind::from_word(notice.kind.into()) == Some(ExitKind::TestEnded)
                            && ServiceState::from_word(notice.state.into()) == Some(ServiceState::Exited)
                        {
                            self.test_ended = Some(notice.rip);
                        }
                        words.push(text.clone());
                        self.told.push((status, text));
                    }
                }
                b'\r' => {}
                byte if self.line.len() < 4096 => self.line.push(byte),
                _ => {}
            }
        }
        words
    }

    fn tell(&self, notice: &Notice) -> (Status, String) {
        let slot = usize::from(notice.slot);
        let service = match self.services.get(slot) {
            Some(name) => format!("service \"{name}\""),
            None => format!("service {slot}"),
        };
        let guest = self.guests.get(slot).and_then(Option::as_ref).map(|name| format!("guest \"{name}\""));
        let who = guest.as_ref().unwrap_or(&service);
        let state = ServiceState::from_word(notice.state.into());
        let exit = ExitKind::from_word(notice.kind.into());
        let reset = state == Some(ServiceState::Exited) && exit == Some(ExitKind::Reset);
        let (status, mut text) = match state {
            Some(ServiceState::Exited) => match exit {
                Some(ExitKind::PoweredOff) => (Status::Clean, format!("{who} powered off")),
                Some(ExitKind::TestEnded) => {
                    let status = if notice.rip == 0 { Status::Clean } else { Status::TestFailed };
                    (status, format!("{who} ended its test with {}", notice.rip))
                }
                Some(ExitKind::Reset) => (Status::Clean, format!("{who} reset itself")),
                Some(ExitKind::Crashed) => (Status::GuestCrashed, format!("{who} crashed: {}", crash(notice))),
                Some(ExitKind::BadSetup) => (Status::BadSetup, format!("{who} can't be set up: {}", setup(notice))),
                Some(ExitKind::Panicked) => (Status::Faulted, format!("{service} panicked; its log says where")),
                None => (Status::Faulted, format!("{service} ended in a way that isn't known ({})", notice.kind)),
            },
            Some(ServiceState::Faulted) => (Status::Faulted, format!("{service} faulted: {}", fault(notice))),
            Some(ServiceState::Killed) => (Status::Faulted, format!("{service} was killed")),
            _ => (Status::Clean, format!("{service} runs")),
        };
        let dead = matches!(state, Some(ServiceState::Exited | ServiceState::Faulted | ServiceState::Killed));
        let again = notice.action == 1;
        match (&guest, reset) {
            _ if again => text += "; it is started again",
            (Some(guest), true) => {
                return (Status::GuestCrashed, format!("{guest} reset itself too often and is given up"));
            }
            (None, _) if dead => {
                return (Status::Faulted, format!("{text}; it ended too often and isn't started again"));
            }
            _ => {}
        }
        (status, text)
    }

    /// The end of the run, when QEMU ended like this.
    pub fn conclude(&self, qemu: ExitStatus, errors: &str, last_error: Option<&Line>) -> Failure {
        // QEMU exits with (value << 1) | 1; with 1 also when it can't start, but then nobody told of a guest's end.
        let silent = self.told.is_empty();
        let said = qemu
            .code()
            .filter(|&code| !(code == 1 && silent))
            .filter(|code| code & 1 == 1)
            .and_then(|code| u8::try_from(code >> 1).ok());
        let status = match said {
            Some(verdict::CLEAN) => Status::Clean,
            Some(verdict::GUEST_CRASHED) => Status::GuestCrashed,
            Some(verdict::FAULTED) => Status::Faulted,
            Some(verdict::BAD_SETUP) => Status::BadSetup,
            _ => {
                let said = errors.trim();
                let said = if said.is_empty() { "it said nothing" } else { said };
                return Failure::new(Status::Faulted, format!("QEMU ended by itself ({qemu}): {said}"));
            }
        };
        // Caisson itself doesn't mind what a test found.
        let failed = self.told.iter().any(|(of, _)| *of == Status::TestFailed);
        let status = if status == Status::Clean && failed { Status::TestFailed } else { status };
        let told: Vec<&str> = self.told.iter().filter(|(of, _)| *of == status).map(|(_, text)| text.as_str()).collect();
        // What nobody told was decided by the kernel or the supervisor; its last error says why.
        let text = match (told.is_empty(), last_error) {
            (false, _) => told.join("; "),
            (true, Some(line)) if status != Status::Clean => match (status, line.who.as_str()) {
                (Status::Faulted, "kernel") => format!("the kernel faulted: {}", line.what),
                (_, who) => format!("{who}: {}", line.what),
            },
            (true, _) => match status {
                Status::Clean => "no guest is left",
                Status::GuestCrashed => "a guest crashed; the log doesn't say how",
                Status::BadSetup => "the machine can't be set up; the log doesn't say why",
                _ => "the kernel or a service faulted; the log doesn't say which",
            }
            .into(),
        };
        Failure::new(status, text)
    }
}

fn unhex(line: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = line.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

fn crash(notice: &Notice) -> String {
    let how = match CrashKind::from_word(notice.rip) {
        Some(CrashKind::TripleFault) => "triple fault",
        Some(CrashKind::InvalidState) => "the processor refused its state",
        Some(CrashKind::Unemulated) => "it used what can't be emulated",
        Some(CrashKind::Panic) => "kernel panic",
        Some(CrashKind::NoMemory) => "it wanted more memory than it was promised, and none is left",
        Some(CrashKind::Hung) => "all vCPUs are halted with interrupts off",
        None => "for an unknown reason",
    };
    format!("{how} (vCPU {})", notice.address)
}

fn setup(notice: &Notice) -> &'static str {
    match SetupError::from_word(notice.rip) {
        Some(SetupError::Config) => "its configuration can't be read",
        Some(SetupError::Kernel) => "its kernel image can't be booted",
        Some(SetupError::Memory) => "there isn't enough memory for it",
        Some(SetupError::Vcpu) => "the kernel refused its vCPUs",
        Some(SetupError::TooSmall) => "kernel, initrd and tables don't fit its memory",
        Some(SetupError::Launch) => "it couldn't be launched as an encrypted VM; the log says why",
        None => "for an unknown reason",
    }
}

fn fault(notice: &Notice) -> String {
    match FaultKind::from_word(notice.kind.into()) {
        Some(FaultKind::Exception) => format!(
            "exception {} (error code {:#x}) at {:#x}, address {:#x}",
            notice.code >> 32,
            notice.code & 0xffff_ffff,
            notice.rip,
            notice.address
        ),
        Some(FaultKind::Protocol) => format!("it sent a message that isn't allowed ({:#x})", notice.code),
        Some(FaultKind::Overrun) => format!("it took longer than its {} ms for one request", notice.code),
        Some(FaultKind::Panic) => format!("it panicked at {:#x}", notice.rip),
        Some(FaultKind::None) | None => "the reason isn't known".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use zerocopy::IntoBytes;

    use super::*;

    fn notices(all: &[Notice]) -> Notices {
        let mut notices = Notices::new(vec!["memory".into(), "vmm-a".into()], vec![None, Some("a".into())]);
        for notice in all {
            let hex: String = notice.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(notices.feed(format!("{hex}\r\n").as_bytes()).len(), 1);
        }
        notices
    }

    fn error(who: &str, what: &str) -> Line {
        Line { who: who.into(), what: what.into(), text: String::new(), error: true, shown: true }
    }

    fn ends(all: &[Notice], code: i32) -> (Status, String) {
        ends_after(all, code, &error("kernel", "#PF"))
    }

    fn ends_after(all: &[Notice], code: i32, last: &Line) -> (Status, String) {
        let end = notices(all).conclude(ExitStatus::from_raw(code << 8), "", Some(last));
        (end.status, end.text)
    }

    const EXITED: Notice = Notice {
        state: ServiceState::Exited as u8,
        kind: ExitKind::PoweredOff as u8,
        slot: 1,
        action: 0,
        spare: [0; 3],
        code: 0,
        rip: 0,
        address: 0,
    };

    #[test]
    fn every_end_has_its_status_and_words() {
        assert_eq!(ends(&[EXITED], 1), (Status::Clean, "guest \"a\" powered off".into()));
        let crashed = Notice { kind: ExitKind::Crashed as u8, rip: CrashKind::Panic as u64, address: 1, ..EXITED };
        let words = "guest \"a\" crashed: kernel panic (vCPU 1)";
        assert_eq!(ends(&[EXITED, crashed], 5), (Status::GuestCrashed, words.into()));
        let setup = Notice { kind: ExitKind::BadSetup as u8, rip: SetupError::Memory as u64, ..EXITED };
        assert_eq!(ends(&[setup], 11).0, Status::BadSetup);
        assert_eq!(ends(&[], 7), (Status::Faulted, "the kernel faulted: #PF".into()));
    }

    #[test]
    fn a_test_that_ended_with_anything_but_0_failed() {
        let ended = |value| Notice { kind: ExitKind::TestEnded as u8, rip: value, ..EXITED };
        assert_eq!(ends(&[ended(0)], 1), (Status::Clean, "guest \"a\" ended its test with 0".into()));
        assert_eq!(ends(&[EXITED, ended(3)], 1), (Status::TestFailed, "guest \"a\" ended its test with 3".into()));
        let crashed = Notice { kind: ExitKind::Crashed as u8, rip: CrashKind::Panic as u64, ..EXITED };
        assert_eq!(ends(&[ended(3), crashed], 5).0, Status::GuestCrashed);
    }

    const FAULTED: Notice = Notice {
        state: ServiceState::Faulted as u8,
        kind: FaultKind::Exception as u8,
        slot: 0,
        action: 1,
        code: 14 << 32 | 2,
        rip: 0x40_1000,
        ..EXITED
    };

    #[test]
    fn a_service_that_faulted_is_named_even_if_the_guests_went_on() {
        let words = "service \"memory\" faulted: exception 14 (error code 0x2) at 0x401000, address 0x0; \
                     it is started again";
        assert_eq!(ends(&[FAULTED, EXITED], 7), (Status::Faulted, words.into()));
    }

    #[test]
    fn a_service_that_is_given_up_is_named() {
        let (status, text) = ends(&[Notice { action: 0, ..FAULTED }], 7);
        assert_eq!(status, Status::Faulted);
        assert!(text.ends_with("; it ended too often and isn't started again"), "{text}");
        let exited = Notice { slot: 0, kind: ExitKind::Crashed as u8, ..EXITED };
        assert!(ends(&[exited], 7).1.starts_with("service \"memory\""));
    }

    #[test]
    fn a_guest_that_resets_without_end_is_named() {
        let reset = Notice { kind: ExitKind::Reset as u8, action: 1, ..EXITED };
        let words = "guest \"a\" reset itself too often and is given up";
        let all = [reset, reset, Notice { action: 0, ..reset }];
        assert_eq!(ends(&all, 5), (Status::GuestCrashed, words.into()));
        assert_eq!(
            ends(&[reset, EXITED], 1).1,
            "guest \"a\" reset itself; it is started again; guest \"a\" powered off"
        );
    }

    #[test]
    fn what_nobody_told_is_the_last_error_of_whoever_ended_the_machine() {
        let boot = error("kernel", "can't boot: a CPU doesn't start (3)");
        let words = "kernel: can't boot: a CPU doesn't start (3)";
        assert_eq!(ends_after(&[], 11, &boot), (Status::BadSetup, words.into()));
        let settle = error("supervisor", "memory didn't settle in time");
        let words = "supervisor: memory didn't settle in time";
        assert_eq!(ends_after(&[EXITED], 7, &settle), (Status::Faulted, words.into()));
        let silent = notices(&[EXITED]).conclude(ExitStatus::from_raw(7 << 8), "", None);
        assert!(silent.text.contains("the log doesn't say"));
    }

    #[test]
    fn qemu_that_ends_by_itself_is_a_fault_with_its_own_words() {
        let ended = |status| notices(&[]).conclude(status, "qemu: boom\n", None);
        let abort = ended(ExitStatus::from_raw(6));
        assert_eq!(abort.status, Status::Faulted);
        assert!(abort.text.contains("signal: 6") && abort.text.ends_with("qemu: boom"));
        assert_eq!(ended(ExitStatus::from_raw(0)).status, Status::Faulted);
        assert_eq!(ended(ExitStatus::from_raw(1 << 8)).status, Status::Faulted, "QEMU's own failure");
    }

    #[test]
    fn what_is_no_notice_is_ignored() {
        let mut notices = notices(&[]);
        assert!(notices.feed(b"zz\n00\n\n").is_empty());
    }
}
