//! The server loop: one message at a time.

use caisson_proto::abi::{Lease, Status, sender};
use caisson_proto::addr::ServiceId;
use caisson_proto::vcpu::{Action, Exit, Resume};
use caisson_proto::wire::{Reply, Words};

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

/// Serves for ever.
pub fn serve<S: Server>(server: &mut S) -> ! {
    let mut delivered = reply_wait(Status::Ok, &[0; 8]);
    loop {
        let (status, words) = match delivered.sender {
            sender::VCPU => {
                (Status::Ok, server.exit(&Exit::from_words(&delivered.words).unwrap_or_default()).to_words())
            }
            sender::DOORBELL => {
                server.doorbell(delivered.words[0]);
                (Status::Ok, [0; 8])
            }
            _ => match delivered.service() {
                Some(service) => server.call(service, &delivered.words, delivered.lease),
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
