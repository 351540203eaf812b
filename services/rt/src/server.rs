//! The server loop: one message at a time.

use caisson_proto::abi::{Lease, MAX_SERVICES, Status};
use caisson_proto::addr::{Sender, ServiceId};
use caisson_proto::vcpu::{Action, Exit, Resume};
use caisson_proto::wire::{Reply, Words};

use crate::info::name_of;
use crate::sys::reply_wait;

/// What a service does with what is delivered to it.
pub trait Server {
    /// A request of another service. The pages lent with it, if any, are in the lease window until the reply.
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words);

    /// Doorbells rang.
    fn doorbell(&mut self, bits: u64);

    /// A vCPU left its guest. Only a vmm is told so.
    fn exit(&mut self, exit: &Exit) -> Resume {
        Resume { action: Action::Stop, ..Resume::at(exit.rip, exit.rax) }
    }
}

/// How often each service was refused something here.
struct Refusals([u32; MAX_SERVICES]);

impl Refusals {
    /// Names who was refused in the log: each time, then ever more rarely, so that nobody can drown the rest of it.
    #[cold]
    fn note(&mut self, sender: ServiceId, what: u64, status: Status) {
        let Some(count) = self.0.get_mut(sender.index()) else { return };
        *count = count.saturating_add(1);
        if count.is_power_of_two() {
            let who = name_of(sender.index());
            defmt::warn!(
                "refused {=str}: message {=u64:#x}, status {=u8}; {=u32} so far",
                who,
                what,
                status as u8,
                *count
            );
        }
    }
}

/// Serves for ever.
pub fn serve<S: Server>(server: &mut S) -> ! {
    let mut refusals = Refusals([0; MAX_SERVICES]);
    let mut delivered = reply_wait(Status::Ok, &[0; 8]);
    loop {
        let (status, words) = match delivered.sender {
            Sender::VCPU => {
                (Status::Ok, server.exit(&Exit::from_words(&delivered.words).unwrap_or_default()).to_words())
            }
            Sender::DOORBELL => {
                server.doorbell(delivered.words[0]);
                (Status::Ok, [0; 8])
            }
            _ => match delivered.sender.service() {
                Some(service) => {
                    let answer = server.call(service, &delivered.words, delivered.lease);
                    if answer.0 != Status::Ok {
                        refusals.note(service, delivered.words[0], answer.0);
                    }
                    answer
                }
                None => (Status::Ok, [0; 8]),
            },
        };
        delivered = reply_wait(status, &words);
    }
}

/// A handler's result as status and words.
pub fn answer<R: Reply>(result: Result<R, Status>) -> (Status, Words) {
    match result {
        Ok(reply) => (Status::Ok, reply.encode()),
        Err(status) => (status, [0; 8]),
    }
}
