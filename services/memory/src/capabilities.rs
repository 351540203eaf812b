//! What memory can do, by KVM's capability numbers (Linux's include/uapi/linux/kvm.h), so that a vmm written for KVM may ask here.
//!
//! Each answer follows from the machine or from a constant of the interface; of what isn't known the answer is 0. Guests'
//! mappings always follow what is changed under them, whatever the build: that answer is a constant.

use caisson_proto::abi::MAX_VCPUS;
use caisson_proto::kernel::Features;
use caisson_proto::memory::MAX_SLOTS;

/// Memory has slots.
const USER_MEMORY: u32 = 3;
/// How many slots a VM can have.
const NR_MEMSLOTS: u32 = 10;
/// Guests' mappings follow what is changed under them.
pub const SYNC_MMU: u32 = 16;
/// vCPUs of a VM at the most.
const MAX_VCPUS_OF_A_VM: u32 = 66;
/// Slots can be read-only.
const READONLY_MEM: u32 = 81;
/// Statistics in KVM's binary format.
const BINARY_STATS: u32 = 203;
/// Slots can have a gmem.
const USER_MEMORY2: u32 = 231;
/// Which attributes a guest frame can have.
const MEMORY_ATTRIBUTES: u32 = 233;
/// There are gmems.
const GUEST_MEMFD: u32 = 234;
/// Which types of VMs there can be, a bit each.
const VM_TYPES: u32 = 235;

/// The attribute: private.
const ATTRIBUTE_PRIVATE: u64 = 1 << 3;
/// Types of VMs: plain, plain with private memory, SEV, SEV-ES, SEV-SNP.
const PLAIN: u64 = 1 << 0 | 1 << 1;
const SEV: u64 = 1 << 2;
const SEV_ES: u64 = 1 << 3;
const SEV_SNP: u64 = 1 << 4;

/// What this machine answers for a capability.
pub fn answer(number: u32, features: Features) -> u64 {
    match number {
        USER_MEMORY | SYNC_MMU | READONLY_MEM | BINARY_STATS | USER_MEMORY2 | GUEST_MEMFD => 1,
        NR_MEMSLOTS => MAX_SLOTS,
        MAX_VCPUS_OF_A_VM => MAX_VCPUS as u64,
        MEMORY_ATTRIBUTES => ATTRIBUTE_PRIVATE,
        VM_TYPES => {
            let sev = if features.contains(Features::SEV) { SEV | SEV_ES } else { 0 };
            PLAIN | sev | if features.contains(Features::SNP) { SEV_SNP } else { 0 }
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every machine that there can be.
    fn machines() -> impl Iterator<Item = Features> {
        (0..=Features::all().bits()).map(Features::from_bits_truncate)
    }

    #[test]
    fn guests_follow_changes_of_memory_in_every_build() {
        assert!(machines().all(|features| answer(SYNC_MMU, features) == 1));
    }

    #[test]
    fn what_nobody_knows_is_zero() {
        let known = [3, 10, 16, 66, 81, 203, 231, 233, 234, 235];
        for number in (0..1000).chain([u32::MAX]).filter(|number| !known.contains(number)) {
            assert!(machines().all(|features| answer(number, features) == 0), "{number}");
        }
        assert!(known.iter().all(|number| answer(*number, Features::empty()) != 0));
    }

    #[test]
    fn types_of_vms_are_the_machines() {
        assert_eq!(answer(VM_TYPES, Features::empty()), 0b11);
        assert_eq!(answer(VM_TYPES, Features::SEV), 0b1111);
        assert_eq!(answer(VM_TYPES, Features::SEV | Features::SNP), 0b1_1111);
        assert_eq!(answer(NR_MEMSLOTS, Features::all()), 32_764);
    }
}
