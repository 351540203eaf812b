//! The processor at registers that lie in memory, shared with who rings it: what a service does when its bell rang.

use crate::board::Board;
use crate::mailbox::{CommandBits, Mailbox, Register};
use crate::processor::Processor;
use crate::status::Status;

/// The registers. Whoever rings reads and writes them at any time.
pub trait Registers {
    /// What stands in one. What was written before the command register is seen after it was read.
    fn read(&self, register: Register) -> u32;
    /// Writes the command register; all that was written before is seen by who reads it.
    fn answer(&self, value: u32);
    /// Writes the command register if there is 0 in it, and says so.
    fn answer_nothing(&self, value: u32) -> bool;
}

/// A command that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its number.
    pub command: u16,
    /// What it ended with.
    pub status: Status,
    /// Whether to interrupt.
    pub interrupt: bool,
}

/// The mailbox at those registers.
#[derive(Debug, Default)]
pub struct Station(Mailbox);

impl Station {
    /// Nothing was rung yet.
    pub const fn new() -> Self {
        Self(Mailbox::new())
    }

    /// Executes what was rung, if something was: a bell can ring without a command, and before the first there is 0.
    pub fn serve(
        &mut self, registers: &impl Registers, processor: &mut Processor, board: &mut impl Board,
    ) -> Option<Served> {
        let command = registers.read(Register::CommandResponse);
        if command == 0 || CommandBits::from_bits_retain(command).contains(CommandBits::RESPONSE) {
            return None;
        }
        self.0.write(Register::AddressLow, registers.read(Register::AddressLow));
        self.0.write(Register::AddressHigh, registers.read(Register::AddressHigh));
        let ring = self.0.write(Register::CommandResponse, command)?;
        let status = processor.ring(board, ring);
        let interrupt = self.0.complete(status);
        registers.answer(self.0.read(Register::CommandResponse));
        Some(Served { command: ring.command, status, interrupt })
    }

    /// Begins after a predecessor, whose registers are 0 now. A command that it had begun ended with it, as one that the
    /// hardware failed. True if that was said, and who rang is to be interrupted. False: something was rung since, to be served.
    pub fn succeed(&mut self, registers: &impl Registers) -> bool {
        registers.answer_nothing(CommandBits::RESPONSE.bits() | u32::from(Status::HardwareErrorPlatform as u16))
    }
}
