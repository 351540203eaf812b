//! Sets of interrupt vectors, as a local APIC keeps three of.

/// A set of 256 vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors([u64; 4]);

impl Vectors {
    /// Adds a vector.
    #[inline]
    pub fn set(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word |= 1 << (vector & 63);
        }
    }
    /// Takes a vector out.
    #[inline]
    pub fn clear(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word &= !(1 << (vector & 63));
        }
    }
    /// Whether it contains `vector`.
    #[inline]
    pub fn has(&self, vector: u8) -> bool {
        self.0.get(usize::from(vector >> 6)).is_some_and(|word| word >> (vector & 63) & 1 == 1)
    }
    /// The highest vector in it.
    #[inline]
    pub fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((index as u32 * 64 + 63 - word.leading_zeros()) as u8)
    }
    /// Whether it is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // At each exit: a comparison of arrays would be a call of memcmp, byte by byte.
        self.0.iter().fold(0, |all, word| all | word) == 0
    }
    /// Vectors 32 × `index` on, as a register shows them.
    pub fn register(&self, index: u16) -> u32 {
        self.0.get(usize::from(index / 2)).map_or(0, |word| (word >> (32 * (index & 1))) as u32)
    }
}
