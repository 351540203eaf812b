//! The CPUID table of a vCPU: a hash table in one frame, filled by its vmm, answered by the kernel. Whatever the vmm put
//! there, a look into it ends and concerns nobody but its guest.

use crate::prelude::*;

const CR4_OSXSAVE: u64 = 1 << 18;
const ECX_OSXSAVE: u32 = 1 << 27;

/// Entries of one leaf lie in a row, in the vmm's order, from [`CpuidEntry::place`] on; an unused entry ends the row.
#[derive(Debug)]
#[repr(transparent)]
pub struct Table(pub [CpuidEntry; CpuidEntry::MAX]);

impl Table {
    fn find(&self, leaf: u32, fits: impl Fn(&CpuidEntry) -> bool) -> Option<&CpuidEntry> {
        let row = (0..CpuidEntry::MAX).map(|step| &self.0[CpuidEntry::place(leaf, step)]);
        row.take_while(|entry| entry.used != 0).find(|entry| entry.leaf == leaf && fits(entry))
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
