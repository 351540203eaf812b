//! Sets of CPUs.

use crate::prelude::*;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSet([u64; MAX_CPUS.div_ceil(64)]);

impl CpuSet {
    /// None.
    pub const EMPTY: Self = Self([0; MAX_CPUS.div_ceil(64)]);

    /// With a CPU more.
    fn with(mut self, cpu: CpuId) -> Self {
        self.0[usize::from(cpu.0) / 64 % MAX_CPUS.div_ceil(64)] |= 1 << (cpu.0 % 64);
        self
    }

    /// Takes one out. Whether it was in.
    pub fn remove(&mut self, cpu: CpuId) -> bool {
        let word = &mut self.0[usize::from(cpu.0) / 64 % MAX_CPUS.div_ceil(64)];
        let before = core::mem::replace(word, *word & !(1 << (cpu.0 % 64)));
        before != *word
    }

    /// Puts those of another set in.
    pub fn unite(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    /// Those in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> {
        (0..MAX_CPUS as u16).map(CpuId).filter(|cpu| self.0[usize::from(cpu.0) / 64] >> (cpu.0 % 64) & 1 == 1)
    }

    /// A set of these.
    pub fn of(cpus: impl Iterator<Item = CpuId>) -> Self {
        cpus.fold(Self::EMPTY, Self::with)
    }
}
