//! Malformed messages: every operation of an interface with every word made wrong in every way of a list, and
//! operations that don't exist. The codec itself says which of them are malformed.

use caisson_proto::abi::Status;
use caisson_proto::addr::{CpuId, Gfn, VmId};
use caisson_proto::firmware::{FirmwareCall, PlatformFact};
use caisson_proto::kernel::{KernelCall, VmKind};
use caisson_proto::memory::{MemoryCall, Populate, VmMake};
use caisson_proto::notifier::NotifierCall;
use caisson_proto::supervisor::SupervisorCall;
use caisson_proto::switch::SwitchCall;
use caisson_proto::wire::{Request, Words};

/// Values that are near some limit.
const NASTY: [u64; 16] = [
    1,
    3,
    8,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0xffff_ffff,
    1 << 32,
    1 << 39,
    1 << 40,
    1 << 52,
    1 << 62,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];
/// Operations that no interface has.
const UNKNOWN: [u64; 6] = [0, 99, 0xffff, 0x1_0001, 1 << 63 | 1, u64::MAX];

/// Whom the messages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// memory.
    Memory,
    /// notifier.
    Notifier,
    /// sev-firmware.
    Firmware,
    /// The switch, of which it has no port.
    Switch,
    /// A vmm, which serves nobody.
    Vmm,
}

impl Interface {
    /// All.
    pub const ALL: [Self; 5] = [Self::Memory, Self::Notifier, Self::Firmware, Self::Switch, Self::Vmm];

    /// A message of each operation, most of them well-formed, and one of each that doesn't exist.
    pub fn operations(self) -> impl Iterator<Item = Words> {
        let (cpu, vm) = (CpuId(1), VmId::new(0, 0));
        let make = VmMake { kind: VmKind::Plain, vcpus: 1, pages: 512, promised: 512, first_cpu: cpu, lowest_cpu: cpu };
        let full = [make.encode(), Populate { vm, gfn: Gfn(0), pages: 1, private: false }.encode()];
        let (full, numbers) = match self {
            Self::Memory | Self::Vmm => (Some(full), MemoryCall::OPERATIONS),
            Self::Notifier => (None, NotifierCall::OPERATIONS),
            Self::Firmware => (None, FirmwareCall::OPERATIONS),
            Self::Switch => (None, SwitchCall::OPERATIONS),
        };
        let numbers = numbers.iter().map(|&(op, _)| op.into()).chain(UNKNOWN);
        full.into_iter().flatten().chain(numbers.map(|op| [op, 0, 0, 0, 0, 0, 0, 0]))
    }

    /// Whether an answer to a message is what it should be. Nothing but questions may succeed.
    pub fn is_right(self, message: &Words, answer: Status) -> bool {
        let (known, question) = match self {
            Self::Memory => {
                let call = MemoryCall::decode(message);
                (call.is_ok(), matches!(call, Ok(MemoryCall::Report(_) | MemoryCall::Capability(_))))
            }
            Self::Notifier => (NotifierCall::decode(message).is_ok(), true),
            Self::Firmware => {
                let call = FirmwareCall::decode(message);
                // Facts of the platform are everybody's, all but one.
                let question = match call {
                    Ok(FirmwareCall::PlatformRead(read)) => read.fact != PlatformFact::PekCsr,
                    Ok(call) => matches!(call, FirmwareCall::PlatformStatus(_) | FirmwareCall::JobResult(_)),
                    Err(_) => false,
                };
                (call.is_ok(), question)
            }
            Self::Switch => (SwitchCall::decode(message).is_ok(), false),
            Self::Vmm => return answer == Status::Denied,
        };
        match answer {
            Status::Malformed => !known,
            Status::Ok => known && question,
            Status::Dead | Status::Died | Status::Downhill => false,
            _ => known,
        }
    }
}

/// A message, and then it with each word made wrong.
pub fn spoiled(message: Words) -> impl Iterator<Item = Words> {
    let each = (0..8).flat_map(move |word| {
        NASTY.into_iter().map(move |value| {
            let mut spoiled = message;
            match spoiled.get_mut(word) {
                // A word 0 that isn't this operation any more.
                Some(first) if word == 0 => *first |= value << 16,
                Some(place) => *place = value,
                None => {}
            }
            spoiled
        })
    });
    core::iter::once(message).chain(each)
}

/// Operations of timers, invalidation and write-back, spoiled, but never so that they are malformed.
pub fn operations() -> impl Iterator<Item = Words> {
    // Of a dead generation: the holder of this capability could indeed keep a VM that is alive from its memory.
    const DEAD: u64 = 0x7fff_0000;
    let each = [(6, 0), (27, DEAD), (28, DEAD), (32, 0), (33, 0), (34, 0)].into_iter();
    each.map(|(op, first)| [op, first, 0, 0, 0, 0, 0, 0])
        .flat_map(spoiled)
        .filter(|words| KernelCall::decode(words).is_ok())
}

/// Malformed requests to the supervisor. The others end services.
pub fn supervisors() -> impl Iterator<Item = Words> {
    let numbers = SupervisorCall::OPERATIONS.iter().map(|&(op, _)| op.into()).chain(UNKNOWN);
    let all = numbers.map(|op| [op, 0, 0, 0, 0, 0, 0, 0]);
    all.flat_map(spoiled).filter(|words| SupervisorCall::decode(words).is_err())
}

/// Tickets that may have been given before any attempt.
const FIRST_TICKETS: u64 = 4;

/// Whether this is what such an operation may come to.
pub fn is_right(message: &Words, answer: Status) -> bool {
    match KernelCall::decode(message) {
        Ok(KernelCall::TimerSet(_)) => answer == Status::Ok,
        Ok(KernelCall::InvalidateBegin(_) | KernelCall::InvalidateEnd(_)) => {
            matches!(answer, Status::NotFound | Status::Dead)
        }
        Ok(KernelCall::TicketCheck(check)) if check.ticket.0 == 0 => answer == Status::Ok,
        // sev-firmware has had caches written back, for its first use of the processor.
        Ok(KernelCall::TicketCheck(check)) if check.ticket.0 <= FIRST_TICKETS => {
            matches!(answer, Status::Ok | Status::NotFound)
        }
        Ok(KernelCall::BatchInfo(_) | KernelCall::WriteBack(_) | KernelCall::TicketCheck(_)) => {
            answer == Status::NotFound
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn each_interface_gets_many_malformed_messages_and_some_that_are_none() {
        for interface in Interface::ALL {
            let all: Vec<Words> = interface.operations().flat_map(spoiled).collect();
            assert_eq!(all.len(), interface.operations().count() * 129);
            let malformed = all.iter().filter(|words| interface.is_right(words, Status::Malformed)).count();
            if interface != Interface::Vmm {
                assert!(malformed > 500 && malformed < all.len() - 2, "{interface:?}: {malformed}");
            }
        }
    }
}
