//! The hostile service. Told by its agent, it makes one attempt after the other; most end it, and it is started again.
//! Under the name "accomplice" it borrows pages and dies, or worse.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod raw;
#[cfg(target_os = "none")]
mod tricks;

#[cfg(target_os = "none")]
mod image {
    use caisson_guest_intruder::attempts::{Act, attempts, spoiled_operation};
    use caisson_guest_intruder::instructions::{INSTRUCTIONS, RDMSR};
    use caisson_guest_intruder::messages::{Interface, is_right, operations, spoiled, supervisors};
    use caisson_guest_intruder::{Report, ask};
    use caisson_proto::abi::{KERNEL_SLOT, Lease, Status};
    use caisson_proto::addr::{PAGE_SIZE, Tsc};
    use caisson_proto::kernel::TimerSet;
    use caisson_proto::supervisor::End;
    use caisson_proto::wire::{Field, Request, Words};
    use caisson_rt::{Delivered, call, call_raw, info, reply_wait, slot_of, time};

    use crate::{raw, tricks};

    /// Milliseconds until a slow answer.
    const SLOW_MS: u64 = 60;

    /// Calls whoever is in a slot now.
    pub fn ask_now(slot: u16, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        match call_raw(slot, words, lease) {
            (Status::Dead, _) => call_raw(slot, words, lease),
            answer => answer,
        }
    }

    fn messages(interface: Interface, index: usize) -> Report {
        let mut report = Report::default();
        let slot = match interface {
            Interface::Memory => slot_of("memory"),
            Interface::Notifier => slot_of("notifier"),
            Interface::Firmware => slot_of("sev-firmware"),
            Interface::Switch => slot_of("switch"),
            Interface::Vmm => info().is_vmm.iter().position(|&is| is == 1).map(|slot| slot as u16),
        };
        for message in interface.operations().nth(index).into_iter().flat_map(spoiled) {
            let (status, _) = ask_now(slot.unwrap_or(0), &message, None);
            report.case(interface.is_right(&message, status), status as u64);
        }
        report
    }

    /// Does it. Coming back is a failure, where it should have ended this service.
    fn act(act: Act) -> Report {
        let mut report = Report::default();
        match act {
            Act::Read(at) => report.case(true, raw::read(at).into()),
            Act::Write(at) => raw::write(at, 0x55),
            Act::Execute(at) => raw::execute(at),
            Act::Instruction(index) => {
                raw::instruction(index, INSTRUCTIONS.get(index).map_or([0; 3], |it| it.registers));
            }
            Act::ReadMsr(number) => raw::instruction(RDMSR, [0, number.into(), 0]),
            Act::WriteMsr(number) => raw::instruction(RDMSR + 1, [0, number.into(), 0]),
            Act::In(port, bytes) => raw::port_in(port, bytes),
            Act::Out(port, bytes) => raw::port_out(port, bytes),
            Act::SystemCall(rax, lease, word) => {
                let (rax, _) = raw::system_call(rax, lease, &[word, 0, 0, 0, 0, 0, 0, 0]);
                report.case(false, rax);
            }
            Act::Operation(op, word) => {
                let (rax, _) = raw::system_call(u64::from(KERNEL_SLOT) << 16, 0, &spoiled_operation(op, word));
                report.case(rax == Status::Denied.to_word(), rax);
            }
            Act::Messages(interface, index) => return messages(interface, index),
            Act::Ring(to, state) => return tricks::ring(to, state),
            Act::Trick(trick) => return tricks::play(trick),
        }
        report
    }

    /// What is in a page that was lent, as its lender left it.
    fn borrowed(lease: Option<Lease>) -> u64 {
        lease.map_or(0, |lease| raw::read(lease.page.0 * PAGE_SIZE).into())
    }

    fn serve(delivered: &Delivered) -> (Status, Words) {
        let [what, nonce, number, ..] = delivered.words;
        let mut answer = delivered.words;
        match what {
            ask::ECHO => {}
            ask::ATTEMPT => {
                let Some(attempt) = attempts().nth(number as usize) else { return (Status::NotFound, [0; 8]) };
                let Report { cases, wrong, got } = act(attempt.act);
                answer = [what, nonce, cases, wrong, got, 0, 0, 0];
            }
            ask::DIE => {
                borrowed(delivered.lease);
                raw::write(0, 0);
            }
            ask::END_LENDER => {
                let ended = slot_of("intruder").map(|slot| call(slot_of("supervisor").unwrap_or(0), &End { slot }));
                defmt::info!(
                    "the lender is ended: {=bool}; its page has {=u64:#x}",
                    ended.is_some_and(|it| it.is_ok()),
                    borrowed(delivered.lease)
                );
            }
            ask::OPERATIONS => {
                let mut report = Report::default();
                for message in operations() {
                    let (status, _) = call_raw(KERNEL_SLOT, &message, None);
                    report.case(is_right(&message, status), status as u64 | message[0] << 8);
                }
                for message in supervisors() {
                    let (status, _) = ask_now(slot_of("supervisor").unwrap_or(0), &message, None);
                    report.case(status == Status::Malformed, status as u64);
                }
                // No timer is left.
                call_raw(KERNEL_SLOT, &TimerSet { at: Tsc(0) }.encode(), None);
                answer = [what, nonce, report.cases, report.wrong, report.got, 0, 0, 0];
            }
            ask::SLOW => {
                let until = time::now().0 + time::ticks(SLOW_MS);
                while time::now().0 < until {}
            }
            ask::KEEP => loop {
                borrowed(delivered.lease);
            },
            _ => return (Status::Malformed, [0; 8]),
        }
        (Status::Ok, answer)
    }

    fn start() -> ! {
        // Nobody waits for an answer to the first message nor to a doorbell. They get one.
        let nobodys = (Status::Busy, [u64::MAX; 8]);
        let mut delivered = reply_wait(nobodys.0, &nobodys.1);
        loop {
            let (status, words) = if delivered.sender.service().is_some() { serve(&delivered) } else { nobodys };
            delivered = reply_wait(status, &words);
        }
    }

    caisson_rt::entry!(start);
}

#[cfg(target_os = "none")]
use image::ask_now;

#[cfg(not(target_os = "none"))]
fn main() {}
