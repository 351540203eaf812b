//! What happened, for the reader of a failure; and a digest of all of it.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};

use caisson_core::event::Event;
use caisson_proto::abi::{KERNEL_SLOT, Status, Syscall};
use caisson_proto::addr::Sender;
use caisson_proto::firmware::FirmwareCall;
use caisson_proto::kernel::KernelCall;
use caisson_proto::memory::MemoryCall;
use caisson_proto::notifier::NotifierCall;
use caisson_proto::vcpu::Exit;
use caisson_proto::wire::{Field, Words};

use crate::silicon::Mischief;

/// Notes that are kept.
const KEPT: usize = 160;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The service in a slot made a system call.
    Syscall(usize, u64, Words),
    /// The service in a slot goes on.
    Enter(usize, u64, Words),
    /// The guest of a context is entered.
    Guest(u16),
    /// A guest was left.
    Exit(u16, Exit),
    /// Interrupts were taken: timer, kinds of IPI, device.
    Interrupt(bool, u8, bool),
    /// The kernel told its log.
    Kernel(Event),
    /// A fault was injected into the service in a slot.
    Fault(usize, &'static str),
    /// The secure processor answered a command, with this status, and what went wrong with it.
    Processor(u16, u16, Option<Mischief>),
    /// A service or the scheduler tells.
    Said(&'static str, u64),
}

#[derive(Clone, Copy, Debug)]
struct Note {
    step: u64,
    now: u64,
    cpu: u16,
    what: What,
}

/// The history of a run.
#[derive(Debug, Default)]
pub struct History {
    notes: VecDeque<Note>,
    events: u64,
    digest: DefaultHasher,
}

impl History {
    /// Notes something.
    pub fn note(&mut self, step: u64, now: u64, cpu: usize, what: What) {
        (step, now, cpu).hash(&mut self.digest);
        hash(&what, &mut self.digest);
        self.events += 1;
        if self.notes.len() == KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back(Note { step, now, cpu: cpu as u16, what });
    }

    /// How much happened.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// A number that two histories share only if they are the same.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// The last notes, a line each.
    pub fn tell(&self, names: &[String]) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "{:>8} {:>9}us cpu{:<3} {}", note.step, note.now, note.cpu, Told(&note.what, names));
        }
        text
    }
}

fn hash(what: &What, digest: &mut DefaultHasher) {
    match what {
        What::Syscall(slot, rax, words) => (0, slot, rax, words).hash(digest),
        What::Enter(slot, rax, words) => (1, slot, rax, words).hash(digest),
        What::Guest(context) => (2, context).hash(digest),
        What::Exit(context, exit) => (3, context, exit.to_words()).hash(digest),
        What::Interrupt(timer, ipi, device) => (4, timer, ipi, device).hash(digest),
        What::Kernel(event) => format!("{event:?}").hash(digest),
        What::Fault(slot, kind) => (5, slot, kind).hash(digest),
        What::Processor(command, status, fault) => (7, command, status, fault.map(|fault| fault as u8)).hash(digest),
        What::Said(text, number) => (6, text, number).hash(digest),
    }
}

struct Told<'a>(&'a What, &'a [String]);

fn operation(operations: &[(u16, &'static str)], word: u64) -> String {
    operations
        .iter()
        .find(|(number, _)| u64::from(*number) == word)
        .map_or_else(|| format!("operation {word:#x}"), |(_, name)| (*name).to_string())
}

impl Told<'_> {
    fn name(&self, slot: usize) -> &str {
        self.1.get(slot).map_or("?", String::as_str)
    }

    fn call(&self, f: &mut fmt::Formatter<'_>, rax: u64, words: &Words) -> fmt::Result {
        let slot = (rax >> 16 & 0xffff) as u16;
        let (to, what) = if slot == KERNEL_SLOT {
            ("kernel", operation(KernelCall::OPERATIONS, words[0]))
        } else {
            let name = self.name(usize::from(slot));
            let what = match name {
                "memory" => operation(MemoryCall::OPERATIONS, words[0]),
                "notifier" => operation(NotifierCall::OPERATIONS, words[0]),
                "sev-firmware" => operation(FirmwareCall::OPERATIONS, words[0]),
                _ => format!("{:#x}", words[0]),
            };
            (name, what)
        };
        write!(f, "calls {to}: {what} {:x?}", &words[1..])
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            What::Syscall(slot, rax, words) => {
                write!(f, "{} ", self.name(*slot))?;
                match Syscall::from_word(rax & 0xff) {
                    Some(Syscall::Call) => self.call(f, *rax, words),
                    Some(Syscall::Reply) => {
                        write!(f, "replies {:?} {words:x?}", Status::from_word(rax >> 16 & 0xffff))
                    }
                    Some(Syscall::Ring) => {
                        write!(f, "rings {} {:#x}", self.name((rax >> 16 & 0xffff) as usize), words[0])
                    }
                    Some(Syscall::Exit) => write!(f, "ends itself {words:x?}"),
                    other => write!(f, "{other:?} {words:x?}"),
                }
            }
            What::Enter(slot, rax, words) => {
                let from = match Sender((rax >> 32) as u32) {
                    Sender(0) => format!("{:?}", Status::from_word(rax & 0xffff)),
                    Sender::START => "start".into(),
                    Sender::DOORBELL => "doorbell".into(),
                    Sender::VCPU => "vCPU".into(),
                    Sender(id) => format!("message of {} (generation {})", self.name((id & 0xffff) as usize), id >> 16),
                };
                write!(f, "  -> {}: {from} {words:x?}", self.name(*slot))
            }
            What::Guest(context) => write!(f, "enters guest, context {context}"),
            What::Exit(context, exit) => {
                write!(
                    f,
                    "leaves guest, context {context}: code {:#x} rax {:#x} rcx {:#x} rdx {:#x} info2 {:#x}",
                    exit.code, exit.rax, exit.rcx, exit.rdx, exit.info2
                )
            }
            What::Interrupt(timer, ipi, device) => {
                write!(f, "takes interrupts: timer {timer}, IPIs {ipi:#x}, device {device}")
            }
            What::Kernel(event) => write!(f, "kernel: {event:?}"),
            What::Fault(slot, kind) => write!(f, "INJECTED: {} {kind}", self.name(*slot)),
            What::Processor(command, status, None) => {
                write!(f, "the processor answers command {command:#x}: {status:#x}")
            }
            What::Processor(command, status, Some(fault)) => {
                write!(f, "INJECTED: the processor {fault:?}: command {command:#x}: {status:#x}")
            }
            What::Said(text, number) => write!(f, "{text} {number:#x}"),
        }
    }
}
