//! The CPUID table of a VM: the machine's own answers, less what a guest can't have, and KVM's leaves.

use alloc::vec::Vec;

use caisson_proto::vcpu::CpuidEntry;

use crate::dev::lapic_timer::CLOCK_SHIFT;
use crate::hypercall::constant;
use crate::vmm::Facts;

/// Features that a guest may see, where the machine has them.
mod allowed {
    /// Leaf 1 ecx: SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
    pub const BASIC_ECX: u32 = 1
        | 1 << 1
        | 1 << 9
        | 1 << 12
        | 1 << 13
        | 1 << 19
        | 1 << 20
        | 1 << 22
        | 1 << 23
        | 1 << 25
        | 1 << 26
        | 1 << 28
        | 1 << 29
        | 1 << 30;
    /// Leaf 1 edx: all but MCE, MCA, PSN, DS, ACPI, SS, HTT, TM, IA-64 and PBE.
    pub const BASIC_EDX: u32 = 0x078b_fbff & !(1 << 7 | 1 << 14);
    /// Leaf 7 ebx: FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS RDSEED ADX SMAP CLFLUSHOPT CLWB SHA.
    pub const SEVEN_EBX: u32 =
        1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24 | 1 << 29;
    /// Leaf 7 ecx: UMIP PKU VAES VPCLMULQDQ RDPID.
    pub const SEVEN_ECX: u32 = 1 << 2 | super::PKU | 1 << 9 | 1 << 10 | 1 << 22;
    /// Leaf 7 edx: FSRM.
    pub const SEVEN_EDX: u32 = 1 << 4;
    /// Leaf 8000_0001 ecx: LAHF ABM SSE4A MISALIGNSSE PREFETCH.
    pub const EXTENDED_ECX: u32 = 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
    /// Leaf 8000_0001 edx: leaf 1's, SYSCALL NX MMXEXT FFXSR PDPE1GB RDTSCP LM 3DNow.
    pub const EXTENDED_EDX: u32 = 0xefd3_fbff & !(1 << 7 | 1 << 14);
    /// XCR0: x87, SSE, AVX, protection keys.
    pub const XCR0: u32 = 7 | super::XCR0_PKRU;
}

/// Leaf 7 ecx: protection keys, and that CR4.PKE is set.
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
/// XCR0: PKRU.
const XCR0_PKRU: u32 = 1 << 9;
/// CR4: protection keys.
const CR4_PKE: u64 = 1 << 22;
/// Features of leaf 1 that depend on XSAVE: FMA, XSAVE, AVX, F16C; leaf 7: AVX2; ecx: VAES, VPCLMULQDQ.
const NEEDS_XSAVE: [u32; 3] = [1 << 12 | 1 << 26 | 1 << 28 | 1 << 29, 1 << 5, 1 << 9 | 1 << 10];

/// Leaf 1 ecx: x2APIC, TSC-deadline timer, hypervisor. All are the vmm's own.
const OWN_ECX: u32 = 1 << 21 | 1 << 24 | 1 << 31;
/// KVM features: no I/O delay, both clocks, end of interrupt, IPI, private memory, stable clock.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 11 | 1 << 16 | 1 << 24;
/// First leaf of a hypervisor.
const KVM: u32 = 0x4000_0000;

/// The table for a VM. Fields that hold an APIC id are those of vCPU 0; [`for_vcpu`] makes a vCPU's own.
pub fn table(host: impl Fn(u32, u32) -> [u32; 4], vcpus: u8, facts: Facts) -> Vec<CpuidEntry> {
    let mut out = Vec::new();
    let mut put = |leaf, subleaf: Option<u32>, flags, answer| {
        let flags = flags | if subleaf.is_some() { CpuidEntry::SUBLEAF } else { 0 };
        out.push(CpuidEntry { leaf, subleaf: subleaf.unwrap_or(0), flags, answer, used: 1 });
    };
    let [host_max, vendor @ ..] = host(0, 0);
    let [host_extended_max, ..] = host(0x8000_0000, 0);
    let basic = |leaf| if leaf <= host_max { host(leaf, 0) } else { [0; 4] };
    let extended = |leaf| if leaf <= host_extended_max { host(leaf, 0) } else { [0; 4] };

    let [signature, brand, ecx, edx] = basic(1);
    let xsave = facts.xsave && ecx & 1 << 26 != 0 && host_max >= 0xd;
    let [hide_1, hide_7b, hide_7c] = if xsave { [0; 3] } else { NEEDS_XSAVE };
    let threads = u32::from(vcpus.max(1));
    let smp = u32::from(threads > 1);
    // Bits of the APIC id below the package.
    let core_bits = threads.next_power_of_two().trailing_zeros();

    put(0, None, 0, [if xsave { 0xd } else { 0xb }, vendor[0], vendor[1], vendor[2]]);
    put(
        1,
        None,
        if xsave { CpuidEntry::OSXSAVE } else { 0 },
        [
            signature,
            // Brand and CLFLUSH size; how many logical processors.
            brand & 0xffff | threads << 16,
            ecx & allowed::BASIC_ECX & !hide_1 | OWN_ECX,
            edx & allowed::BASIC_EDX | 1 << 9 | smp << 28,
        ],
    );
    // ARAT: the APIC timer never stops.
    put(6, None, 0, [1 << 2, 0, 0, 0]);
    let [_, ebx, ecx, edx] = basic(7);
    // PKRU stays with its vCPU as a part of the XSAVE area.
    let keys = xsave && ecx & PKU != 0 && host(0xd, 0)[0] & XCR0_PKRU != 0;
    let hide_7c = hide_7c | if keys { 0 } else { PKU };
    let seven = [0, ebx & allowed::SEVEN_EBX & !hide_7b, ecx & allowed::SEVEN_ECX & !hide_7c, edx & allowed::SEVEN_EDX];
    // A bit of it follows CR4.
    put(7, Some(0), if keys { CpuidEntry::ASK } else { 0 }, seven);
    // One thread a core, all cores in one package.
    put(0xb, Some(0), 0, [0, 1, 1 << 8, 0]);
    put(0xb, Some(1), 0, [core_bits, threads, 2 << 8 | 1, 0]);
    put(0xb, Some(2), 0, [0, 0, 2, 0]);
    if xsave {
        xsave_leaves(&host, keys, &mut put);
    }

    put(KVM, None, 0, [KVM + 0x10, u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from(b'M')]);
    put(KVM + 1, None, 0, [KVM_FEATURES, 0, 0, 0]);
    // kHz of the TSC and of the APIC timer's clock.
    let khz = u32::try_from(facts.tsc_khz).unwrap_or(u32::MAX);
    put(KVM + 0x10, None, 0, [khz, khz >> CLOCK_SHIFT, 0, 0]);

    put(0x8000_0000, None, 0, [0x8000_0008, vendor[0], vendor[1], vendor[2]]);
    let [signature, brand, ecx, edx] = extended(0x8000_0001);
    // CMP legacy: the number of logical processors is the number of cores.
    let cmp_legacy = smp << 1;
    put(
        0x8000_0001,
        None,
        0,
        [signature, brand, ecx & allowed::EXTENDED_ECX | cmp_legacy, edx & allowed::EXTENDED_EDX | 1 << 9],
    );
    for leaf in 0x8000_0002..=0x8000_0006 {
        put(leaf, None, 0, extended(leaf));
    }
    // The TSC is invariant.
    put(0x8000_0007, None, 0, [0, 0, 0, 1 << 8]);
    let [widths, ..] = extended(0x8000_0008);
    put(0x8000_0008, None, 0, [widths & 0xffff, 0, core_bits << 12 | (threads - 1), 0]);
    out.extend(constant());
    out
}

fn xsave_leaves(
    host: &impl Fn(u32, u32) -> [u32; 4], keys: bool, put: &mut impl FnMut(u32, Option<u32>, u32, [u32; 4]),
) {
    let [low, ..] = host(0xd, 0);
    let hidden = if keys { 0 } else { XCR0_PKRU };
    let components = low & allowed::XCR0 & !hidden | 3;
    // Legacy area and header; each component says where it ends.
    let mut size = 576;
    let mut rest = components & !3;
    while rest != 0 {
        let component = rest.trailing_zeros();
        rest &= rest - 1;
        let [bytes, offset, ..] = host(0xd, component);
        size = size.max(offset.saturating_add(bytes));
    }
    put(0xd, Some(0), 0, [components, size, size, 0]);
    // XSAVEOPT only: no supervisor state, no compaction.
    let [features, ..] = host(0xd, 1);
    put(0xd, Some(1), 0, [features & 1, 0, 0, 0]);
    for component in 2..32 {
        if components >> component & 1 == 1 {
            put(0xd, Some(component), 0, host(0xd, component));
        }
    }
}

/// The table of vCPU `index`, whose APIC id is the same number.
pub fn for_vcpu(table: &[CpuidEntry], index: u8) -> Vec<CpuidEntry> {
    let mut own = table.to_vec();
    for entry in &mut own {
        entry.answer = with_id(entry, index);
    }
    own
}

/// A vCPU's table with its local APIC shown or not.
pub fn with_apic(own: &[CpuidEntry], on: bool) -> Vec<CpuidEntry> {
    const APIC: u32 = 1 << 9;
    let mut own = own.to_vec();
    for entry in own.iter_mut().filter(|entry| matches!(entry.leaf, 1 | 0x8000_0001)) {
        let [.., edx] = &mut entry.answer;
        *edx = if on { *edx | APIC } else { *edx & !APIC };
    }
    own
}

fn with_id(entry: &CpuidEntry, index: u8) -> [u32; 4] {
    let [eax, ebx, ecx, edx] = entry.answer;
    match entry.leaf {
        1 => [eax, ebx & 0x00ff_ffff | u32::from(index) << 24, ecx, edx],
        0xb => [eax, ebx, ecx, u32::from(index)],
        _ => entry.answer,
    }
}

/// What the table says: what the kernel answers too.
pub fn answer(table: &[CpuidEntry], index: u8, leaf: u32, subleaf: u32) -> [u32; 4] {
    let fits = |entry: &&CpuidEntry| {
        let subleaf_fits = entry.flags & CpuidEntry::SUBLEAF == 0 || entry.subleaf == subleaf;
        entry.leaf == leaf && entry.flags & CpuidEntry::HYPERCALL == 0 && subleaf_fits
    };
    table.iter().find(fits).map_or([0; 4], |entry| with_id(entry, index))
}

/// Bits of CR4 that protection keys have, if the table shows them.
pub fn cr4_keys(table: &[CpuidEntry]) -> u64 {
    let [_, _, ecx, _] = answer(table, 0, 7, 0);
    if ecx & PKU != 0 { CR4_PKE } else { 0 }
}

/// What leaf 7 says in ecx of CR4.
pub fn keys_on(ecx: u32, cr4: u64) -> u32 {
    if ecx & PKU != 0 && cr4 & CR4_PKE != 0 { OSPKE } else { 0 }
}

/// The bits of XCR0 that a guest may set.
pub fn xcr0(table: &[CpuidEntry]) -> u64 {
    let [low, _, _, high] = answer(table, 0, 0xd, 0);
    u64::from(low) | u64::from(high) << 32
}
