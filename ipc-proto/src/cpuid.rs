//! How a vmm lays out the CPUID table that the kernel answers from.

use crate::vcpu::CpuidEntry;

/// The page for `CpuidLoad` with these entries. Of one leaf's entries the first that matches answers, so order matters
/// among them. `None` if they are too many.
pub fn arrange(entries: &[CpuidEntry]) -> Option<[CpuidEntry; CpuidEntry::MAX]> {
    let mut page = [CpuidEntry::default(); CpuidEntry::MAX];
    for entry in entries {
        let mut places = (0..CpuidEntry::MAX).map(|step| CpuidEntry::place(entry.leaf, step));
        let free = places.find(|&at| page[at].used == 0)?;
        page[free] = CpuidEntry { used: 1, ..*entry };
    }
    Some(page)
}
