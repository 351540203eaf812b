//! The CPUID table, on any machine.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::vcpu::CpuidEntry;
use caisson_vmm::Facts;
use caisson_vmm::cpuid::{answer, for_vcpu, table, with_apic, xcr0};

#[derive(Debug, Arbitrary)]
struct Input {
    answers: Vec<(u32, u32, [u32; 4])>,
    other: [u32; 4],
    vcpus: u8,
    khz: u64,
    xsave: bool,
    asked: Vec<(u32, u32)>,
}

/// A table fits where it goes, and says of no leaf more than it has.
pub fn tables(data: &[u8]) {
    let Ok(input) = Unstructured::new(data).arbitrary::<Input>() else { return };
    let host = |leaf, subleaf| {
        let known = input.answers.iter().find(|(at, sub, _)| (*at, *sub) == (leaf & 0x8000_001f, subleaf & 0x1f));
        known.map_or(input.other, |(_, _, answer)| *answer)
    };
    let vcpus = input.vcpus % 8 + 1;
    let table = table(host, vcpus, Facts { tsc_khz: input.khz, xsave: input.xsave });
    assert!(table.len() <= CpuidEntry::MAX);
    assert_eq!(xcr0(&table) & !0x207, 0, "XCR0 has bits that the kernel doesn't keep");
    for index in 0..vcpus {
        let own = for_vcpu(&table, index);
        assert_eq!(own.len(), table.len());
        assert_eq!(with_apic(&own, false).len(), table.len());
        assert_eq!(answer(&table, index, 1, 0)[1] >> 24, index.into());
        for &(leaf, subleaf) in &input.asked {
            assert_eq!(answer(&table, index, leaf, subleaf), answer(&own, index, leaf, subleaf));
        }
    }
}
