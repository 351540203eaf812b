//! The table of attempts: what is done, and what must become of it.

use core::fmt;

use caisson_proto::abi::{KERNEL_SLOT, Status};
use caisson_proto::info::RingUse;
use caisson_proto::kernel::KernelCall;
use caisson_proto::layout;
use caisson_proto::wire::Words;

use crate::instructions::{GP, INSTRUCTIONS, RDMSR};
use crate::messages::Interface;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Read a byte.
    Read(u64),
    /// Write a byte.
    Write(u64),
    /// Jump there.
    Execute(u64),
    /// Execute an instruction: its index in [`INSTRUCTIONS`].
    Instruction(usize),
    /// Read a model-specific register.
    ReadMsr(u32),
    /// Write one.
    WriteMsr(u32),
    /// Read a port; of so many bytes.
    In(u16, u8),
    /// Write one.
    Out(u16, u8),
    /// A system call: rax, rbx and word 0.
    SystemCall(u64, u64, u64),
    /// A kernel operation, of which this word has all bits set.
    Operation(u16, usize),
    /// Messages of this operation of an interface, each word spoiled.
    Messages(Interface, usize),
    /// A ring that it writes, of this use, in one of [`STATES`] states that no honest writer leaves.
    Ring(RingUse, u64),
    /// Something that takes more than one step.
    Trick(Trick),
}

/// What takes more than one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    /// Every kernel operation, well-formed, without its capability.
    NoCapability,
    /// Calls to every slot that the manifest doesn't allow, and to slots that don't exist.
    ForbiddenCalls,
    /// Calls to generations that aren't.
    DeadGenerations,
    /// Guest memory of VMs that aren't its own, of every slot and several generations.
    ForgedVms,
    /// Leases of pages that aren't there, aren't its own, or may not be written; and of no canonical form.
    BadLeases,
    /// Leases of every 64th page of its space: those of its own image, info page and stack alone are accepted.
    Probe,
    /// Doorbells with every bit, again and again, to all whom it may ring; and to those whom it may not.
    Doorbells,
    /// Kernel operations for which its accomplice has the capability, with numbers that name nothing.
    Insider,
    /// System calls with stack pointers to nowhere.
    WildStack,
    /// System calls with every flag set that ring 3 can set.
    WildFlags,
    /// Answers to messages that nobody waits for an answer to.
    TwoReplies,
    /// The borrower of a page dies.
    BorrowerDies,
    /// The borrower of a page never answers.
    BorrowerKeeps,
    /// The lender is ended while its page is lent.
    LenderDies,
    /// Spins.
    Spin,
    /// Makes system calls for ever.
    SpinNull,
    /// Calls others for ever.
    SpinCalls,
    /// Calls others for ever, who take their time: it does next to nothing itself.
    SpinWaiting,
    /// Rings doorbells for ever.
    SpinRings,
    /// Writes to the log for ever.
    SpinLog,
    /// Recurses until its stack is used up.
    Recurse,
    /// Panics.
    Panic,
}

/// What must become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It goes on: everything was refused as it should be.
    Refused,
    /// It ends by one of these exceptions.
    Exception(&'static [u8]),
    /// It ends for a message that isn't allowed.
    Protocol,
    /// It ends for taking too long.
    Overrun,
    /// It ends itself, with this kind.
    Exited(u64),
    /// It is ended by the supervisor.
    Killed,
}

/// An attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What is done.
    pub act: Act,
    /// What must become of it.
    pub expect: Expect,
    /// Whether the agent lends it a page to read meanwhile.
    pub lease: bool,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.act {
            Act::Instruction(index) => match INSTRUCTIONS.get(index) {
                Some(instruction) => write!(f, "instruction {}", instruction.name),
                None => write!(f, "no instruction"),
            },
            act => write!(f, "{act:x?}"),
        }
    }
}

/// Page faults.
const PF: Expect = Expect::Exception(&[14]);

/// Kernel memory: frames, frame table, its page table, image, interrupt controllers, descriptor tables, a CPU's own
/// area, its page tables, task state and stack, the window, the last page; and the half of the page tables between.
const KERNEL: [u64; 18] = [
    0xffff_8000_0000_0000,
    0xffff_8000_0010_0000,
    0xffff_a000_0000_0000,
    0xffff_a080_0000_0000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_8010_0000,
    0xffff_ffff_8020_0000,
    0xffff_ffff_bfe0_0000,
    0xffff_ffff_bfe0_1000,
    0xffff_ffff_bfe0_2000,
    0xffff_ffff_c000_0000,
    0xffff_ffff_c001_0000,
    0xffff_ffff_c001_4000,
    0xffff_ffff_c002_fff8,
    0xffff_ffff_c006_4000,
    0xffff_ffff_ffff_f000,
    layout::USER_END,
    0x7fff_ffff_f000,
];
/// Addresses that aren't canonical: a protection fault.
const WILD: [u64; 3] = [1 << 47, 0x8000_0000_0000_0000, 0xffff_7fff_ffff_fff8];
/// What is mapped for others, or not now: null, below the image, above the stack, heap, rings that it hasn't, vCPUs,
/// leases, files, a guest.
const OTHERS: [u64; 12] = [
    0,
    0x1000,
    layout::IMAGE - 1,
    layout::INFO - 1,
    layout::INFO + 0x1000,
    layout::STACK_TOP,
    layout::HEAP,
    layout::RINGS + 8 * 0x1000,
    layout::VCPU_STATE,
    layout::LEASE,
    layout::FILES,
    layout::GUEST,
];
/// What it may read: neither written nor, but for the code, executed.
const READ_ONLY: [u64; 2] = [layout::IMAGE, layout::INFO];
/// What it may write: not executed.
const WRITABLE: [u64; 2] = [layout::STACK_TOP - 0x1000, layout::RINGS];
const MSRS: [u32; 24] = [
    0x10,
    0x1b,
    0x48,
    0x8b,
    0x174,
    0x175,
    0x176,
    0x179,
    0x1d9,
    0x277,
    0x2ff,
    0x802,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0102,
    0xc000_0103,
    0xc001_0010,
    0xc001_0114,
    0xc001_0117,
    0xc001_0130,
    0xc001_0131,
];
/// Interrupt controllers, timer, keyboard controller, clock, logs, COM1 and the agent's COM2, the way to end the
/// machine, PCI, and the edges of all.
const PORTS: [u16; 18] =
    [0, 0x20, 0x21, 0x40, 0x43, 0x60, 0x64, 0x70, 0xa1, 0xe8, 0xe9, 0xf4, 0x2f8, 0x3f8, 0x3fd, 0xcf8, 0xcfc, 0xffff];
/// System calls that don't exist.
const NO_CALLS: [u64; 8] = [5, 6, 0x10, 0x3f, 0x7f, 0x80, 0xfe, 0xff];
const TO_KERNEL: u64 = (KERNEL_SLOT as u64) << 16;
/// MachineInfo, which needs no capability.
const FREE_OPERATION: u64 = 5;
/// Leases that aren't canonical: what goes with a kernel operation must be.
const NO_LEASES: [u64; 4] = [1, 1 << 62, 1 << 63 | 17 << 56 | layout::IMAGE >> 12, u64::MAX];
/// Statuses of a reply that don't exist.
const NO_STATUS: [u64; 3] = [Status::ALL.len() as u64, 0xff, 0xffff];
/// States of a ring: slots that are too long, never end, or have garbage; counts that can't be. The last is empty.
pub const STATES: u64 = 26;
/// Rings that it writes: to console and to notifier.
const RINGS: [RingUse; 2] = [RingUse::Log, RingUse::Reclaimed];
const KINDS: [u64; 8] = [0, 1, 2, 3, 4, 5, 255, u64::MAX];

const TRICKS: [(Trick, Expect); 22] = [
    (Trick::NoCapability, Expect::Refused),
    (Trick::ForbiddenCalls, Expect::Refused),
    (Trick::DeadGenerations, Expect::Refused),
    (Trick::ForgedVms, Expect::Refused),
    (Trick::BadLeases, Expect::Refused),
    (Trick::Probe, Expect::Refused),
    (Trick::Doorbells, Expect::Refused),
    (Trick::Insider, Expect::Refused),
    (Trick::WildStack, Expect::Refused),
    (Trick::WildFlags, Expect::Refused),
    (Trick::TwoReplies, Expect::Refused),
    (Trick::BorrowerDies, Expect::Refused),
    (Trick::BorrowerKeeps, Expect::Refused),
    (Trick::LenderDies, Expect::Killed),
    (Trick::Spin, Expect::Overrun),
    (Trick::SpinNull, Expect::Overrun),
    (Trick::SpinCalls, Expect::Overrun),
    (Trick::SpinWaiting, Expect::Overrun),
    (Trick::SpinRings, Expect::Overrun),
    (Trick::SpinLog, Expect::Overrun),
    (Trick::Recurse, PF),
    (Trick::Panic, Expect::Exited(4)),
];

/// A kernel operation with this word spoiled.
pub fn spoiled_operation(op: u16, word: usize) -> Words {
    let mut words = [u64::from(op), 0, 0, 0, 0, 0, 0, 0];
    if let Some(place) = words.get_mut(word) {
        *place = u64::MAX;
    }
    words
}

fn operation((op, word): (u16, usize)) -> (Act, Expect) {
    let malformed = KernelCall::decode(&spoiled_operation(op, word)).is_err();
    (Act::Operation(op, word), if malformed { Expect::Protocol } else { Expect::Refused })
}

/// All, in their order.
pub fn attempts() -> impl Iterator<Item = Attempt> {
    let tricks = TRICKS.into_iter().map(|(trick, expect)| (Act::Trick(trick), expect));
    let messages = Interface::ALL.into_iter().flat_map(|interface| {
        (0..interface.operations().count()).map(move |index| (Act::Messages(interface, index), Expect::Refused))
    });
    let rings = RINGS.into_iter().flat_map(|to| (0..STATES).map(move |state| (Act::Ring(to, state), Expect::Refused)));
    let touch = |at: u64, expect: Expect| [Act::Read(at), Act::Write(at), Act::Execute(at)].map(|act| (act, expect));
    let memory = KERNEL.into_iter().chain(OTHERS).flat_map(move |at| touch(at, PF));
    let wild = WILD.into_iter().flat_map(move |at| touch(at, Expect::Exception(GP)));
    let read_only = READ_ONLY.into_iter().flat_map(|at| [(Act::Write(at), PF), (Act::Execute(at), PF)]);
    let writable = WRITABLE.into_iter().map(|at| (Act::Execute(at), PF));
    // The last two are there for their registers.
    let instructions = INSTRUCTIONS.iter().enumerate().take(RDMSR);
    let instructions = instructions.map(|(index, it)| (Act::Instruction(index), Expect::Exception(it.vectors)));
    let msrs = MSRS.into_iter().flat_map(|msr| [Act::ReadMsr(msr), Act::WriteMsr(msr)]);
    let ports = PORTS.into_iter().flat_map(|port| {
        let wide = if port < 0xf0 { 2 } else { 4 };
        [Act::In(port, 1), Act::Out(port, 1), Act::In(port, wide), Act::Out(port, wide)]
    });
    let protected = msrs.chain(ports).map(|act| (act, Expect::Exception(GP)));
    let calls = NO_CALLS.into_iter().map(|number| Act::SystemCall(number, 0, 0));
    let leases = NO_LEASES.into_iter().map(|lease| Act::SystemCall(TO_KERNEL, lease, FREE_OPERATION));
    let statuses = NO_STATUS.into_iter().map(|status| Act::SystemCall(1 | status << 16, 0, 0));
    let garbage = [0, 7, 99, 0xffff, 1 << 16 | 5, u64::MAX].into_iter().map(|op| Act::SystemCall(TO_KERNEL, 0, op));
    let protocol = calls.chain(leases).chain(statuses).chain(garbage).map(|act| (act, Expect::Protocol));
    let operations = KernelCall::OPERATIONS.iter().flat_map(|&(op, _)| (1..8).map(move |word| (op, word)));
    let exits = KINDS.into_iter().map(|kind| (Act::SystemCall(4, 0, kind), Expect::Exited(kind)));
    let plain = tricks.chain(rings).chain(messages).chain(memory).chain(wild).chain(read_only).chain(writable);
    let plain =
        plain.chain(instructions).chain(protected).chain(protocol).chain(operations.map(operation)).chain(exits);
    let plain = plain.map(|(act, expect)| Attempt { act, expect, lease: false });
    // A page that is lent for reading, and the one behind it; and the same page in the next call.
    let lent = [(Act::Write(layout::LEASE), true), (Act::Read(layout::LEASE + 0x1000), true)];
    let lent = lent.into_iter().chain([(Act::Execute(layout::LEASE), true), (Act::Read(layout::LEASE + 8), false)]);
    plain.chain(lent.map(|(act, lease)| Attempt { act, expect: PF, lease }))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn every_attempt_has_a_name_of_its_own_and_most_end_the_intruder() {
        let all: Vec<Attempt> = attempts().collect();
        let names: std::collections::HashSet<_> = all.iter().map(|it| (it.to_string(), it.lease)).collect();
        assert_eq!(names.len(), all.len());
        let ends = all.iter().filter(|it| it.expect != Expect::Refused).count();
        assert!(ends > 400, "{ends} of {}", all.len());
    }

    #[test]
    fn every_instruction_is_tried() {
        assert!((0..RDMSR).all(|index| attempts().any(|it| it.act == Act::Instruction(index))));
        assert!(MSRS.iter().all(|&msr| attempts().any(|it| it.act == Act::ReadMsr(msr))));
    }
}
