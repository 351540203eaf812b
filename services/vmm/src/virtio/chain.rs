//! A chain of descriptors: the buffers of one request (virtio 1.3, section 2.7.5).

use alloc::vec::Vec;

use super::memory::{Broken, Reach};

/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A buffer in guest memory, all of which is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub gpa: u64,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A request's buffers, copied and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Number of its first descriptor, by which the driver knows it.
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<Span>,
    /// What it may write, all behind what it may read.
    pub writable: Vec<Span>,
}

/// Length of these buffers in bytes.
pub fn length(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.bytes)).sum()
}

/// The parts of buffers that `bytes` bytes from `offset` on lie in, as far as there are any.
pub fn parts(spans: &[Span], offset: u64, bytes: u64) -> impl Iterator<Item = Span> + '_ {
    let (mut skip, mut left) = (offset, bytes);
    spans.iter().filter_map(move |span| {
        let before = skip.min(u64::from(span.bytes));
        skip -= before;
        let count = left.min(u64::from(span.bytes) - before);
        left -= count;
        (count > 0).then_some(Span { gpa: span.gpa + before, bytes: count as u32 })
    })
}

impl Chain {
    /// The chain that begins with descriptor `head` of a table of `size` at `table`.
    pub(super) fn walk(memory: &mut dyn Reach, table: u64, size: u16, head: u16) -> Result<Self, Broken> {
        let mut chain = Self { head, ..Self::default() };
        let mut number = head;
        for _ in 0..size {
            if number >= size {
                return Err(Broken::Descriptor);
            }
            let mut bytes = [0; DESCRIPTOR as usize];
            memory.read(table + u64::from(number) * DESCRIPTOR, &mut bytes)?;
            let [address @ .., _, _, _, _, _, _, _, _] = bytes;
            let [_, _, _, _, _, _, _, _, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
            let span = Span { gpa: u64::from_le_bytes(address), bytes: u32::from_le_bytes([l0, l1, l2, l3]) };
            let flags = u16::from_le_bytes([f0, f1]);
            if flags & INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            if !memory.contains(span.gpa, u64::from(span.bytes)) {
                return Err(Broken::Buffer);
            }
            if flags & WRITE != 0 {
                chain.writable.push(span);
            } else if chain.writable.is_empty() {
                chain.readable.push(span);
            } else {
                return Err(Broken::Order);
            }
            if flags & NEXT == 0 {
                let all = length(&chain.readable) + length(&chain.writable);
                return if all < 1 << 32 { Ok(chain) } else { Err(Broken::Buffer) };
            }
            number = u16::from_le_bytes([n0, n1]);
        }
        Err(Broken::Circle)
    }

    /// Copies what the device may read, from `offset` on.
    ///
    /// # Errors
    /// [`Broken::Request`] if there isn't so much.
    pub fn read(&self, memory: &mut dyn Reach, offset: u64, into: &mut [u8]) -> Result<(), Broken> {
        let mut rest = into;
        for part in parts(&self.readable, offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut_checked(part.bytes as usize).ok_or(Broken::Request)?;
            memory.read(part.gpa, now)?;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(Broken::Request) }
    }

    /// Copies into what the device may write, from `offset` on.
    ///
    /// # Errors
    /// [`Broken::Request`] if there isn't so much.
    pub fn write(&self, memory: &mut dyn Reach, offset: u64, from: &[u8]) -> Result<(), Broken> {
        let mut rest = from;
        for part in parts(&self.writable, offset, rest.len() as u64) {
            let (now, later) = rest.split_at_checked(part.bytes as usize).ok_or(Broken::Request)?;
            memory.write(part.gpa, now)?;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(Broken::Request) }
    }
}
