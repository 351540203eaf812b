//! The three registers through which the processor is spoken to (55766 chapter 4).
//!
//! No memory is touched here: a board puts these registers where its processor has them, and rings
//! [`Processor::ring`](crate::Processor::ring) when a write says so.

use bitflags::bitflags;
use caisson_proto::addr::Spa;

use crate::status::Status;

/// A register. Where each lies is the board's matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// CMD_RESP: command, response, status.
    CommandResponse,
    /// CMDBUFF_ADDR_LO: bits 31:0 of the buffer's physical address.
    AddressLow,
    /// CMDBUFF_ADDR_HI: bits 63:32.
    AddressHigh,
}

bitflags! {
    /// The single bits of the command register; the command's number is in \[26:16\], the status in \[15:0\].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandBits: u32 {
        /// Written with a command: interrupt when it is done.
        const INTERRUPT = 1;
        /// The processor has answered. Software clears it when it rings.
        const RESPONSE = 1 << 31;
        /// The command's number.
        const COMMAND = 0x7ff << 16;
        /// The status, or what a command says beside its number.
        const STATUS = 0xffff;
    }
}

/// What was rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The command's number, known or not.
    pub command: u16,
    /// Where its buffer lies.
    pub buffer: Spa,
}

/// The registers and the command that is under way.
#[derive(Clone, Debug, Default)]
pub struct Mailbox {
    command: u32,
    address: u64,
    busy: bool,
}

impl Mailbox {
    /// After reset: as if the last command had been answered.
    pub const fn new() -> Self {
        Self { command: CommandBits::RESPONSE.bits(), address: 0, busy: false }
    }

    /// What software reads.
    pub const fn read(&self, register: Register) -> u32 {
        match register {
            Register::CommandResponse => self.command,
            Register::AddressLow => self.address as u32,
            Register::AddressHigh => (self.address >> 32) as u32,
        }
    }

    /// What software writes. A command register without the response bit is a ring.
    ///
    /// While a command is under way all writes are ignored (unverified: the specification only forbids them).
    pub fn write(&mut self, register: Register, value: u32) -> Option<Ring> {
        if self.busy {
            return None;
        }
        match register {
            Register::AddressLow => self.address = self.address & !0xffff_ffff | u64::from(value),
            Register::AddressHigh => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            Register::CommandResponse => {
                self.command = value;
                if !CommandBits::from_bits_retain(value).contains(CommandBits::RESPONSE) {
                    self.busy = true;
                    let command = (value & CommandBits::COMMAND.bits()) >> 16;
                    return Some(Ring { command: command as u16, buffer: Spa(self.address) });
                }
            }
        }
        None
    }

    /// The command has ended. Whether to interrupt; nothing happens if none was under way.
    ///
    /// The number stays in the register beside the status (unverified; drivers look at the response bit and the status).
    pub fn complete(&mut self, status: Status) -> bool {
        if !core::mem::take(&mut self.busy) {
            return false;
        }
        let interrupt = self.command & CommandBits::INTERRUPT.bits() != 0;
        self.command =
            CommandBits::RESPONSE.bits() | self.command & CommandBits::COMMAND.bits() | u32::from(status as u16);
        interrupt
    }

    /// Whether a command is under way.
    pub const fn busy(&self) -> bool {
        self.busy
    }
}
