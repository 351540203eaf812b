//! The services' programs: their libraries, and what their thin mains do on the machine.

mod again;
mod bent;
mod echo;
mod firmware;
mod judge;
mod launch;
mod memory;
mod mischief;
mod notifier;
mod platform;
mod private;
mod ring;
mod shown;
mod supervisor;
mod vmm;

pub use memory::RECLAIM;
pub use supervisor::KILL;

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Sender, ServiceId, Tsc};
use caisson_proto::kernel::TimerSet;
use caisson_proto::vcpu::{Exit, Resume};
use caisson_proto::wire::Words;

use crate::manifest::Role;
use crate::service::Sys;

/// What a service does with what is delivered to it: as in `services/rt`.
pub trait Server {
    /// A request.
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words);
    /// Doorbells rang.
    fn doorbell(&mut self, _: u64) {}
    /// A vCPU left its guest.
    fn exit(&mut self, exit: &Exit) -> Resume {
        Resume::at(exit.rip, exit.rax)
    }
}

/// Serves until the end of this life.
pub fn serve(sys: &Sys<'_>, server: &mut impl Server) {
    let mut delivered = sys.reply_wait(Sender::START, Status::Ok, &[0; 8]);
    while !sys.stopped() {
        let (status, words) = match delivered.sender {
            Sender::VCPU => {
                (Status::Ok, server.exit(&Exit::from_words(&delivered.words).unwrap_or_default()).to_words())
            }
            Sender::DOORBELL => {
                server.doorbell(delivered.words[0]);
                (Status::Ok, [0; 8])
            }
            other => match other.service() {
                Some(from) => server.call(from, &delivered.words, delivered.lease),
                None => {
                    sys.world.fail(|| format!("slot {} gets a message of {:#x}", sys.slot, other.0));
                    (Status::Ok, [0; 8])
                }
            },
        };
        delivered = sys.reply_wait(delivered.sender, status, &words);
    }
}

/// Lets some time pass before anything is served.
pub fn doze(sys: &Sys<'_>, ticks: u64) {
    let _ = sys.ask(&TimerSet { at: Tsc(sys.world.now.get() + ticks) });
    sys.reply_wait(Sender::START, Status::Ok, &[0; 8]);
}

/// What the service in a slot runs.
pub fn main(sys: &Sys<'_>) {
    match sys.world.manifest.services.get(sys.slot).map(|service| service.role) {
        Some(Role::Supervisor) => supervisor::main(sys),
        Some(Role::Vmm(_)) => vmm::main(sys),
        Some(Role::Memory) => memory::main(sys),
        Some(Role::Notifier) => notifier::main(sys),
        Some(Role::Firmware) => firmware::main(sys),
        Some(Role::Echo) => echo::main(sys, true),
        Some(Role::Deep) => echo::main(sys, false),
        None => {}
    }
}
