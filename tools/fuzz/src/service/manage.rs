//! memory and notifier, on a kernel whose answers are any that it may give.

use arbitrary::{Arbitrary, Unstructured};
use caisson_memory::Memory;
use caisson_notifier::Notifier;
use caisson_proto::abi::Status;
use caisson_proto::addr::ServiceId;
use caisson_proto::memory::{MemoryCall, Reclaimed};
use caisson_proto::notifier::NotifierCall;
use caisson_proto::wire::{Field, Reply, Request, Words};
use zerocopy::IntoBytes;

use crate::guest::act::number;

/// Answers of the kernel's: the input's, and refusals when it is used up.
pub(super) struct Kernel<'a, 'b>(pub(super) &'b mut Unstructured<'a>);

impl Kernel<'_, '_> {
    pub(super) fn answer<R: Request>(&mut self) -> Result<R::Reply, Status> {
        if self.0.is_empty() {
            return Err(Status::NotFound);
        }
        let status = self.0.arbitrary::<u8>().unwrap_or(1);
        if status < 64 {
            return Err(Status::from_word(u64::from(status % 14) + 1).unwrap_or(Status::Dead));
        }
        // Frames and counts of a small machine, which fit every field; flags and kinds are among the small numbers.
        let mut words: Words = [0; 8];
        for word in &mut words {
            *word = match status {
                64..160 => u64::from(self.0.arbitrary::<u8>().unwrap_or(0)) & 1,
                _ => self.0.arbitrary::<u16>().unwrap_or(0).into(),
            };
        }
        // A reply has as many words as it has.
        (0..=8)
            .rev()
            .find_map(|used: usize| {
                let mut shorter = words;
                shorter[used..].fill(0);
                R::Reply::decode(&shorter).ok()
            })
            .ok_or(Status::Busy)
    }
}

impl caisson_memory::Kernel for Kernel<'_, '_> {
    fn ask<R: Request>(&mut self, _: &R) -> Result<R::Reply, Status> {
        self.answer::<R>()
    }
    fn post(&mut self, _: &Reclaimed) -> bool {
        self.0.arbitrary().unwrap_or(false)
    }
    fn firmware<R: Request>(&mut self, _: &R) -> Result<R::Reply, Status> {
        self.answer::<R>()
    }
    fn settle(&mut self) {}
    fn want(&mut self, _: u64) {}
    fn settled(&mut self) {}
    fn again(&mut self) -> bool {
        self.0.arbitrary().unwrap_or(false)
    }
    fn later(&mut self) {}
}

impl caisson_notifier::Kernel for Kernel<'_, '_> {
    fn ask<R: Request>(&mut self, _: &R) -> Result<R::Reply, Status> {
        self.answer::<R>()
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// A request, with an operation that may exist.
    Call {
        sender: u8,
        op: u8,
        #[arbitrary(with = fields)]
        fields: [u64; 7],
    },
    /// Any words.
    Words(u8, Words),
    Doorbell(u64),
    /// A ring's message: of the right length, or not.
    Message(Vec<u8>),
    Reclaimed {
        vm: u8,
        batch: u8,
        #[arbitrary(with = number)]
        gfn: u64,
        pages: u64,
    },
    Restart,
}

pub(super) fn fields(u: &mut Unstructured) -> arbitrary::Result<[u64; 7]> {
    let mut fields = [0; 7];
    let used = u.int_in_range(0..=7)?;
    for field in fields.iter_mut().take(used) {
        *field = number(u)?;
    }
    Ok(fields)
}

/// The words of a call.
fn words(op: u8, fields: [u64; 7]) -> Words {
    let mut words = [0; 8];
    words[0] = u64::from(op % 8);
    words[1..].copy_from_slice(&fields);
    words
}

/// memory: what is no message is called that, whatever state it is in.
pub fn memory(data: &[u8]) {
    let mut input = Unstructured::new(data);
    // Its table of chunks is large: not on the stack.
    let mut memory = Box::new(Memory::new());
    memory.start(2, &mut Kernel(&mut input));
    for _ in 0..100 {
        let Ok(step) = input.arbitrary::<Step>() else { return };
        let (sender, words) = match step {
            Step::Call { sender, op, fields } => (sender, words(op, fields)),
            Step::Words(sender, words) => (sender, words),
            Step::Doorbell(bits) => {
                memory.doorbell(bits, &mut Kernel(&mut input));
                continue;
            }
            Step::Restart => {
                *memory = Memory::new();
                memory.start(2, &mut Kernel(&mut input));
                continue;
            }
            Step::Message(_) | Step::Reclaimed { .. } => continue,
        };
        let known = MemoryCall::decode(&words).is_ok();
        let (status, reply) = memory.handle(ServiceId::new(sender.into(), 0), &words, None, &mut Kernel(&mut input));
        assert!(known || status == Status::Malformed);
        assert!(status == Status::Ok || reply == [0; 8], "{status:?} with {reply:?}");
        if input.is_empty() {
            return;
        }
    }
}

/// notifier: messages of memory's ring and calls, in any order, malformed or not.
pub fn notifier(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut notifier = Notifier::new();
    for _ in 0..100 {
        let Ok(step) = input.arbitrary::<Step>() else { return };
        let kernel = &mut Kernel(&mut input);
        match step {
            Step::Call { op, fields, .. } => call(&mut notifier, &words(op, fields), kernel),
            Step::Words(_, words) => call(&mut notifier, &words, kernel),
            Step::Doorbell(_) => notifier.ticket(kernel),
            Step::Message(bytes) => {
                assert_eq!(notifier.reclaimed(&bytes, kernel), bytes.len() == size_of::<Reclaimed>());
            }
            Step::Reclaimed { vm, batch, gfn, pages } => {
                let message = Reclaimed { vm: vm.into(), batch: batch.into(), gfn, pages };
                assert!(notifier.reclaimed(message.as_bytes(), kernel));
            }
            Step::Restart => notifier = Notifier::new(),
        }
        if input.is_empty() {
            return;
        }
    }
}

fn call(notifier: &mut Notifier, words: &Words, kernel: &mut Kernel) {
    let known = NotifierCall::decode(words).is_ok();
    let (status, reply) = notifier.handle(words, kernel);
    assert_eq!(known, status == Status::Ok);
    assert!(known || reply == [0; 8]);
}
