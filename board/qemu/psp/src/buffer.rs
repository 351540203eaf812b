//! A command's buffer: at most 64 bytes, copied once.

use caisson_proto::addr::Spa;

use crate::status::Status;

/// The longest command buffer.
pub const MAX_LENGTH: usize = 64;

/// A copy of a command buffer. Fields outside it read as zero and can't be written; which fields there are is fixed by
/// [`Command::length`](crate::Command::length).
#[derive(Clone, Debug)]
pub struct Buffer {
    bytes: [u8; MAX_LENGTH],
    length: usize,
}

impl Buffer {
    /// An empty one with room for `length` bytes.
    pub const fn new(length: usize) -> Self {
        Self { bytes: [0; MAX_LENGTH], length: if length < MAX_LENGTH { length } else { MAX_LENGTH } }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Its bytes, to fill it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }

    /// `N` bytes at an offset.
    pub fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        field(self.bytes(), at)
    }

    /// A number of 32 bits.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// A number of 64 bits.
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// An address.
    pub fn spa(&self, at: usize) -> Spa {
        Spa(self.u64(at))
    }

    /// Writes a field.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        put(self.bytes_mut(), at, bytes);
    }

    /// Refuses if a byte of a reserved range isn't zero. 56860 demands it; for 55766 it is unverified and not asked.
    pub fn reserved(&self, range: core::ops::Range<usize>) -> Result<(), Status> {
        let zero = self.bytes().get(range).unwrap_or_default().iter().all(|byte| *byte == 0);
        if zero { Ok(()) } else { Err(Status::InvalidParam) }
    }
}

/// `N` bytes of a structure at an offset; zeros where it ends.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(bytes.get(at..).unwrap_or_default()).for_each(|(to, byte)| *to = *byte);
    out
}

/// Writes bytes into a structure at an offset; what doesn't fit is left out.
pub fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into.get_mut(at..).unwrap_or_default().iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
}
