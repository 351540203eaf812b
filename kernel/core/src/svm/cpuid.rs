//! The CPUID table of a vCPU: a hash table in one frame, filled by its vmm, answered by the kernel.

use caisson_proto::abi::Status;
use caisson_proto::vcpu::CpuidEntry;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const KNOWN_FLAGS: u32 = CpuidEntry::SUBLEAF | CpuidEntry::OSXSAVE | CpuidEntry::ASK;
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

/// What CPUID answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// eax, ebx, ecx, edx.
    Registers([u32; 4]),
    /// The vmm wants to answer.
    Ask,
}

/// Standard leaves from 0, hypervisor leaves (4000_0000) from 32, extended ones (8000_0000) from 64.
const fn hash(leaf: u32) -> usize {
    (leaf ^ leaf >> 25) as usize % CpuidEntry::MAX
}

impl Table {
    /// Whether an entry is well formed.
    pub fn accepts(entry: &CpuidEntry) -> bool {
        entry.flags & !KNOWN_FLAGS == 0 && entry.spare == 0
    }

    /// Adds an entry. A leaf's first matching entry answers, so order matters among entries of one leaf.
    ///
    /// # Errors
    /// [`Status::Malformed`] unless it is [accepted](Self::accepts), [`Status::Exhausted`] if the table is full.
    pub fn add(&mut self, entry: CpuidEntry) -> Result<(), Status> {
        if !Self::accepts(&entry) {
            return Err(Status::Malformed);
        }
        let start = hash(entry.leaf);
        let free = (0..CpuidEntry::MAX)
            .map(|step| (start + step) % CpuidEntry::MAX)
            .find(|&at| self.entries[at].spare == 0)
            .ok_or(Status::Exhausted)?;
        self.entries[free] = CpuidEntry { spare: USED, ..entry };
        Ok(())
    }

    /// The answer to CPUID with these registers. A leaf without an entry reads as zeros.
    #[inline]
    pub fn look_up(&self, leaf: u32, subleaf: u32, cr4: u64) -> Answer {
        let mut at = hash(leaf);
        for _ in 0..CpuidEntry::MAX {
            let entry = &self.entries[at];
            if entry.spare == 0 {
                break;
            }
            let any_subleaf = entry.flags & CpuidEntry::SUBLEAF == 0;
            if entry.leaf == leaf && (any_subleaf || entry.subleaf == subleaf) {
                return answer(entry, cr4);
            }
            at = (at + 1) % CpuidEntry::MAX;
        }
        Answer::Registers([0; 4])
    }
}

#[inline]
fn answer(entry: &CpuidEntry, cr4: u64) -> Answer {
    if entry.flags & CpuidEntry::ASK != 0 {
        return Answer::Ask;
    }
    let mut registers = entry.answer;
    if entry.flags & CpuidEntry::OSXSAVE != 0 {
        registers[2] &= !ECX_OSXSAVE;
        if cr4 & CR4_OSXSAVE != 0 {
            registers[2] |= ECX_OSXSAVE;
        }
    }
    Answer::Registers(registers)
}
