//! Messages as they travel: every eight words are one message or none.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::firmware::{self, FirmwareCall};
use caisson_proto::kernel::{self, KernelCall};
use caisson_proto::memory::{self, MemoryCall};
use caisson_proto::notifier::{self, NotifierCall};
use caisson_proto::ring;
use caisson_proto::supervisor::{self, SupervisorCall};
use caisson_proto::vcpu::{Exit, Resume};
use caisson_proto::wire::{Reply, Request, Words};

use crate::guest::act::number;

#[derive(Debug, Arbitrary)]
struct Input {
    op: u8,
    #[arbitrary(with = |u: &mut Unstructured| [(); 8].map(|()| number(u)).into_iter().collect::<arbitrary::Result<Vec<_>>>())]
    words: Vec<u64>,
    flip: u16,
}

/// Words with a likely operation, and few of them far from zero.
fn words(input: &Input, request: bool) -> Words {
    let mut words = [0; 8];
    words.iter_mut().zip(&input.words).for_each(|(to, from)| *to = *from);
    if request {
        words[0] = (input.op % 64).into();
    }
    // Most messages are shorter than eight words.
    let used = usize::from(input.op >> 6) * 2 + 2;
    words[used.min(8)..].fill(0);
    words
}

/// A request that is understood has exactly these words.
fn request<R: Request>(words: &Words) -> bool {
    words[0] == u64::from(R::OP)
        && R::take(&words[1..]).is_ok_and(|request| {
            assert_eq!(request.encode(), *words, "operation {}", R::OP);
            true
        })
}

fn reply<R: Reply>(words: &Words) {
    if let Ok(reply) = R::decode(words) {
        assert_eq!(reply.encode(), *words);
    }
}

/// Checks `$all` against each of its requests: it understands what one of them understands.
macro_rules! interface {
    ($words:ident, $all:ident: $($module:ident :: $name:ident)+) => {
        let one = [$((<$module::$name as Request>::OP, request::<$module::$name>($words))),+];
        let known = one.iter().any(|(op, _)| u64::from(*op) == $words[0]);
        let understood = one.iter().any(|(_, understood)| *understood);
        assert!(!known || understood == $all::decode($words).is_ok(), "{:?}", $words);
    };
}

fn requests(words: &Words) {
    interface!(words, MemoryCall: memory::VmMake memory::Populate memory::Report memory::FramesOf
        memory::NoticesOf);
    interface!(words, SupervisorCall: supervisor::End supervisor::Forgive);
    interface!(words, NotifierCall: notifier::Settle notifier::Report notifier::NoticesOf);
    interface!(words, FirmwareCall: firmware::PlatformStatus firmware::JobResult firmware::PlatformDo
        firmware::PlatformRead firmware::Init firmware::InitEx firmware::PekCertImport firmware::SnpInit
        firmware::SnpShutdownEx firmware::SnpConfig firmware::LaunchStart firmware::LaunchUpdate firmware::LaunchVmsa
        firmware::LaunchMeasure firmware::LaunchSecret firmware::LaunchFinish firmware::Attestation
        firmware::GuestStatus firmware::Decommission firmware::SnpLaunchStart firmware::SnpLaunchUpdate
        firmware::SnpLaunchFinish firmware::SnpGuestRequest firmware::RegisterRegion firmware::UnregisterRegion);
    interface!(words, KernelCall: kernel::ServiceStatus kernel::ServiceRestart kernel::ServiceKill kernel::PowerOff
        kernel::MachineInfo kernel::TimerSet kernel::FrameRuns kernel::FrameCount kernel::VmCreate kernel::VmDestroy
        kernel::VmRelease kernel::VmInfo kernel::TablesDonate kernel::VcpuCreate kernel::GuestMap kernel::GuestUnmap
        kernel::InvalidateBegin kernel::InvalidateEnd kernel::BatchInfo kernel::WriteBack
        kernel::TicketCheck kernel::VcpuRun kernel::VcpuKick kernel::VcpuRead kernel::CpuidLoad);
}

fn replies(words: &Words) {
    reply::<kernel::ServiceReport>(words);
    reply::<kernel::Machine>(words);
    reply::<kernel::FrameRun>(words);
    reply::<kernel::FrameCounts>(words);
    reply::<kernel::VmReport>(words);
    reply::<kernel::Unmapped>(words);
    reply::<kernel::BatchReport>(words);
    reply::<kernel::TicketState>(words);
    reply::<memory::MemoryReport>(words);
    reply::<memory::VmMade>(words);
    reply::<memory::VmFrames>(words);
    reply::<notifier::VmNotices>(words);
    reply::<firmware::Platform>(words);
    reply::<firmware::Queued>(words);
    reply::<firmware::JobReport>(words);
    if let Ok(exit) = Exit::from_words(words) {
        assert_eq!(exit.to_words(), *words);
    }
    if let Ok(resume) = Resume::from_words(words) {
        assert_eq!(resume.to_words(), *words);
    }
}

/// Every message has one encoding; a ring's counts are believed only where they can be true.
pub fn wire(data: &[u8]) {
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        let Ok(input) = input.arbitrary::<Input>() else { return };
        let mut request = words(&input, true);
        requests(&request);
        // A bit more.
        request[usize::from(input.flip >> 6 & 7)] ^= 1 << (input.flip & 63);
        requests(&request);
        let reply = words(&input, false);
        requests(&reply);
        replies(&reply);
        let [head, tail, ..] = reply;
        if let Some(count) = ring::available(head, tail) {
            assert!(count <= ring::SLOTS && tail.wrapping_add(count.into()) == head);
        }
        assert!((64..=4032).contains(&ring::slot_offset(head)));
    }
}
