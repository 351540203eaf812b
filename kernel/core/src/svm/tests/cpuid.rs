extern crate std;

use std::vec::Vec;

use caisson_proto::cpuid::arrange;
use caisson_proto::vcpu::CpuidEntry;
use proptest::prelude::*;

use crate::svm::cpuid::Table;

fn entry() -> impl Strategy<Value = CpuidEntry> {
    let leaf = prop_oneof![0..8u32, Just(0x0b), Just(0x0d), 0x4000_0000..0x4000_0003u32, 0x8000_0000..0x8000_0009u32];
    (leaf, 0..4u32, 0..8u32, any::<[u32; 4]>()).prop_map(|(leaf, subleaf, flags, answer)| CpuidEntry {
        leaf,
        subleaf,
        flags,
        answer,
        used: 0,
    })
}

fn table(entries: &[CpuidEntry]) -> Table {
    Table(arrange(entries).unwrap())
}

/// The rule as ipc-proto tells it: the first entry that fits answers.
fn model(entries: &[CpuidEntry], leaf: u32, subleaf: u32, osxsave: bool) -> Option<[u32; 4]> {
    let fits = |entry: &&CpuidEntry| {
        let is_leaf = entry.leaf == leaf && entry.flags & CpuidEntry::HYPERCALL == 0;
        is_leaf && (entry.flags & CpuidEntry::SUBLEAF == 0 || entry.subleaf == subleaf)
    };
    let Some(entry) = entries.iter().find(fits) else { return Some([0; 4]) };
    if entry.flags & CpuidEntry::ASK != 0 {
        return None;
    }
    let mut answer = entry.answer;
    if entry.flags & CpuidEntry::OSXSAVE != 0 {
        answer[2] = answer[2] & !(1 << 27) | u32::from(osxsave) << 27;
    }
    Some(answer)
}

proptest! {
    #![proptest_config(super::cases(256))]

    #[test]
    fn answers_like_a_list(entries in prop::collection::vec(entry(), 0..=CpuidEntry::MAX), asked in prop::collection::vec((any::<prop::sample::Index>(), 0..5u32, any::<bool>()), 1..40)) {
        let table = table(&entries);
        let leaves: Vec<u32> = entries.iter().map(|entry| entry.leaf).chain([0x99, 0x8000_0099]).collect();
        for (which, subleaf, osxsave) in asked {
            let leaf = *which.get(&leaves);
            let cr4 = u64::from(osxsave) << 18;
            prop_assert_eq!(table.look_up(leaf, subleaf, cr4), model(&entries, leaf, subleaf, osxsave));
        }
    }
}

#[test]
fn a_hypercall_is_no_leaf() {
    let call = |number, low, high| CpuidEntry {
        leaf: CpuidEntry::HYPERCALLS + number,
        flags: CpuidEntry::HYPERCALL,
        answer: [low, high, 0, 0],
        ..CpuidEntry::default()
    };
    let table = table(&[call(1, 7, 9), call(3, u32::MAX, u32::MAX)]);
    assert_eq!(table.hypercall(1), Some(9 << 32 | 7));
    assert_eq!(table.hypercall(3), Some(u64::MAX));
    assert_eq!(table.hypercall(2), None, "the vmm's");
    assert_eq!(table.hypercall(1 << 32 | 1), None, "all of rax counts");
    assert_eq!(table.hypercall(0x4000_0001), None, "leaves don't come round");
    assert_eq!(table.look_up(CpuidEntry::HYPERCALLS + 1, 0, 0), Some([0; 4]));
}

#[test]
fn is_bounded() {
    let full = table(&[CpuidEntry { leaf: 7, flags: CpuidEntry::SUBLEAF, ..CpuidEntry::default() }; CpuidEntry::MAX]);
    assert_eq!(full.look_up(7, 1, 0), Some([0; 4]));
    assert_eq!(arrange(&[CpuidEntry::default(); CpuidEntry::MAX + 1]), None);
}

proptest! {
    #![proptest_config(super::cases(256))]

    #[test]
    fn a_look_into_anything_ends(words in prop::collection::vec(any::<[u32; 8]>(), CpuidEntry::MAX), asked in any::<[u32; 8]>()) {
        let entry = |[leaf, subleaf, flags, used, answer @ ..]: [u32; 8]| CpuidEntry { leaf, subleaf, flags, answer, used };
        let table = Table(words.into_iter().map(entry).collect::<Vec<_>>().try_into().unwrap());
        for leaf in asked.into_iter().chain(table.0.map(|entry| entry.leaf)) {
            table.look_up(leaf, asked[0], asked[1].into());
            table.hypercall(leaf.into());
        }
    }
}
