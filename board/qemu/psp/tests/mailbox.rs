//! The registers, and what can't be a command.

mod common;

use caisson_qemu_psp::{Command, Mailbox, Register, Status};
use common::*;

#[test]
fn a_ring_is_a_command_without_the_response_bit() {
    let mut mailbox = Mailbox::new();
    assert_eq!(mailbox.write(Register::CommandResponse, 0x8000_0000), None);
    mailbox.write(Register::AddressLow, 0x1234_5000);
    mailbox.write(Register::AddressHigh, 0x7);
    let ring = mailbox.write(Register::CommandResponse, 0x0004_0001).expect("rung");
    assert_eq!((ring.command, ring.buffer.0), (4, 0x7_1234_5000));
    assert!(mailbox.busy());
    assert_eq!(mailbox.read(Register::CommandResponse) >> 31, 0);
}

#[test]
fn nothing_changes_while_a_command_is_under_way() {
    let mut mailbox = Mailbox::new();
    mailbox.write(Register::AddressLow, 0x1000);
    assert!(mailbox.write(Register::CommandResponse, 0x0004_0000).is_some());
    assert_eq!(mailbox.write(Register::CommandResponse, 0x0002_0000), None);
    mailbox.write(Register::AddressLow, 0x2000);
    assert_eq!(mailbox.read(Register::AddressLow), 0x1000);
    assert!(!mailbox.complete(Status::InvalidAddress), "no interrupt was asked for");
    assert_eq!(mailbox.read(Register::CommandResponse), 0x8004_0009);
}

#[test]
fn an_interrupt_comes_if_it_was_asked_for_and_once() {
    let mut mailbox = Mailbox::new();
    assert!(!mailbox.complete(Status::Success), "nothing was rung");
    mailbox.write(Register::CommandResponse, 0x0004_0001);
    assert!(mailbox.complete(Status::Success));
    assert!(!mailbox.complete(Status::Success));
    assert_eq!(mailbox.read(Register::CommandResponse), 0x8004_0000);
}

#[test]
fn numbers_that_are_no_command_are_refused() {
    let mut rig = Rig::initialised();
    let before = rig.status();
    for number in (0..0x800).filter(|number| Command::from_bits(*number).is_none()) {
        assert_eq!(rig.ring(number, COMMAND), Status::InvalidCommand, "{number:#x}");
    }
    assert_eq!(rig.status(), before);
    assert_eq!(Command::ALL.len(), 39);
}

#[test]
fn a_buffer_must_be_memory() {
    let mut rig = Rig::initialised();
    for command in Command::ALL.iter().filter(|command| command.length() > 0) {
        let short = MEMORY - command.length() as u64 + 1;
        // The third is what the host gave away at INIT.
        for at in [MEMORY, short, 8 << 20, (8 << 20) - 1, u64::MAX, u64::MAX - 3, 1 << 51] {
            assert_eq!(rig.ring(*command as u16, at), Status::InvalidAddress, "{command:?} at {at:#x}");
        }
    }
}
