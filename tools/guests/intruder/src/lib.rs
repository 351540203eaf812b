//! What a hostile service tries, and what must become of each attempt. The service, its agent and the check on the
//! host read the same table. They are in no machine but the tests' (`board/qemu/hostile.toml`).
#![no_std]

pub mod attempts;
pub mod instructions;
pub mod messages;

/// What the agent asks the intruder: word 0 of a call. Word 1 comes back, so that an answer can't be another's.
pub mod ask {
    /// Answer.
    pub const ECHO: u64 = 1;
    /// Make the attempt whose number is word 2. Words 2 to 4 of the answer are a [`Report`](crate::Report).
    pub const ATTEMPT: u64 = 2;
    /// To the accomplice, with a lease: die.
    pub const DIE: u64 = 3;
    /// To the accomplice, with a lease: have the lender ended, then read what it lent.
    pub const END_LENDER: u64 = 4;
    /// To the accomplice, with a lease: never answer.
    pub const KEEP: u64 = 5;
    /// To the accomplice: try the operations that it may, on what isn't there. Answered as [`ATTEMPT`].
    pub const OPERATIONS: u64 = 6;
    /// To the accomplice: answer after a while.
    pub const SLOW: u64 = 7;
}

/// What the agent is told over its serial line: a byte each.
pub mod order {
    /// Begin with the attempts.
    pub const GO: u8 = b'g';
    /// With the slot in the low bits: have this service ended.
    pub const END: u8 = 0x80;
    /// With the slot in the low bits: have its restarts forgotten.
    pub const FORGIVE: u8 = 0x40;
}

/// What an attempt that survived found: how many cases there were, and the first that went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Cases.
    pub cases: u64,
    /// Number of the first wrong one, from 1; 0 if all were as they should be.
    pub wrong: u64,
    /// What came of it.
    pub got: u64,
}

impl Report {
    /// Takes in a case.
    pub fn case(&mut self, right: bool, got: u64) {
        self.cases += 1;
        if !right && self.wrong == 0 {
            (self.wrong, self.got) = (self.cases, got);
        }
    }
}
