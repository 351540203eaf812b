//! A search without coverage, for any toolchain: inputs of a seeded sequence, and known inputs with changes.

use std::path::{Path, PathBuf};

/// The longest input that is made.
const MAX_BYTES: u64 = 2048;

/// A sequence that its seed determines (SplitMix64).
#[derive(Clone, Debug)]
pub struct Sequence(u64);

impl Sequence {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// The next input: new, or one of the known with a few changes.
    pub fn input(&mut self, known: &[Vec<u8>]) -> Vec<u8> {
        let base = if self.next().is_multiple_of(2) { known.get(self.below(known.len())) } else { None };
        let Some(base) = base else {
            // Short ones are more.
            let limit = MAX_BYTES >> (self.next() % 6);
            let length = self.next() % limit;
            return (0..length).map(|_| self.next() as u8).collect();
        };
        let mut input = base.clone();
        for _ in 0..=self.below(8) {
            let at = self.below(input.len() + 1);
            match (self.next() % 4, input.get_mut(at)) {
                (0, Some(byte)) => *byte = self.next() as u8,
                (1, Some(byte)) => *byte ^= 1 << self.below(8),
                (2, Some(_)) => drop(input.remove(at)),
                _ => input.insert(at, self.next() as u8),
            }
        }
        input
    }
}

/// The inputs in a folder, in the order of their names; none if there is no such folder.
pub fn inputs(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.into_iter().filter_map(|path| std::fs::read(&path).ok().map(|bytes| (path, bytes))).collect()
}
