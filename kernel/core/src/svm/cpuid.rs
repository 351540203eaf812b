//! The CPUID table of a vCPU: a hash table in one frame, filled by its vmm, answered by the kernel.

use crate::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const KNOWN_FLAGS: u32 = CpuidEntry::SUBLEAF | CpuidEntry::OSXSAVE | CpuidEntry::ASK | CpuidEntry::HYPERCALL;
/// Marks an entry in use, in its spare word.
const USED: u32 = 1;
const CR4_OSXSAVE: u64 = 1 << 18;
const ECX_OSXSAVE: u32 = 1 << 27;

/// Entries of one leaf lie in a row, in the vmm's order, from the leaf's hash on; an unused entry ends the row.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Table {
    entries: [CpuidEntry; CpuidEntry::MAX],
}

const _: () = assert!(size_of::<Table>() == 4096 && CpuidEntry::MAX.is_power_of_two());

/// Standard leaves from 0, hypervisor leaves (4000_0000) from 32, extended ones (8000_0000) from 64.
const fn hash(leaf: u32) -> usize {
    (leaf ^ leaf >> 25) as usize % CpuidEntry::MAX
}

impl Table {
    /// Adds an entry. A leaf's first matching entry answers, so order matters among entries of one leaf.
    ///
    /// # Errors
    /// [`Status::Malformed`] for an unknown flag or a spare word that isn't 0, [`Status::Exhausted`] if it is full.
    pub fn add(&mut self, entry: CpuidEntry) -> Outcome {
        ensure(entry.flags & !KNOWN_FLAGS == 0 && entry.spare == 0, Status::Malformed)?;
        let mut row = (0..CpuidEntry::MAX).map(|step| (hash(entry.leaf) + step) % CpuidEntry::MAX);
        let free = row.find(|&at| self.entries[at].spare == 0).ok_or(Status::Exhausted)?;
        self.entries[free] = CpuidEntry { spare: USED, ..entry };
        Ok(())
    }

    fn find(&self, leaf: u32, fits: impl Fn(&CpuidEntry) -> bool) -> Option<&CpuidEntry> {
        let row = (0..CpuidEntry::MAX).map(|step| &self.entries[(hash(leaf) + step) % CpuidEntry::MAX]);
        row.take_while(|entry| entry.spare != 0).find(|entry| entry.leaf == leaf && fits(entry))
    }

    /// What a hypercall with this rax answers, or `None` if the vmm is to.
    pub fn hypercall(&self, rax: u64) -> Option<u64> {
        let leaf = u32::try_from(rax).ok()?.checked_add(CpuidEntry::HYPERCALLS)?;
        let [low, high, ..] = self.find(leaf, |entry| entry.flags & CpuidEntry::HYPERCALL != 0)?.answer;
        Some(u64::from(low) | u64::from(high) << 32)
    }

    /// The answer to CPUID with these registers, or `None` if the vmm wants to answer. A leaf without an entry reads
    /// as zeros.
    pub fn look_up(&self, leaf: u32, subleaf: u32, cr4: u64) -> Option<[u32; 4]> {
        let found = self.find(leaf, |entry| match entry.flags & (CpuidEntry::SUBLEAF | CpuidEntry::HYPERCALL) {
            CpuidEntry::SUBLEAF => entry.subleaf == subleaf,
            flags => flags == 0,
        });
        let Some(entry) = found else { return Some([0; 4]) };
        if entry.flags & CpuidEntry::ASK != 0 {
            return None;
        }
        let mut registers = entry.answer;
        if entry.flags & CpuidEntry::OSXSAVE != 0 {
            let on = if cr4 & CR4_OSXSAVE != 0 { ECX_OSXSAVE } else { 0 };
            registers[2] = registers[2] & !ECX_OSXSAVE | on;
        }
        Some(registers)
    }
}
