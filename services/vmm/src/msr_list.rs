//! Numbers of the model-specific registers that the vmm knows, and those that it only pretends to have.

pub const TSC: u32 = 0x10;
pub const APIC_BASE: u32 = 0x1b;
pub const MTRR_CAP: u32 = 0xfe;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const PAT: u32 = 0x277;
pub const MTRR_DEFAULT: u32 = 0x2ff;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;
pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;
pub const HWCR: u32 = 0xc001_0015;
pub const DE_CFG: u32 = 0xc001_1029;
pub const KVM_WALL_CLOCK: u32 = 0x11;
pub const KVM_SYSTEM_TIME: u32 = 0x12;
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
pub const KVM_PV_EOI: u32 = 0x4b56_4d04;

/// HWCR: the invariant TSC's P0 frequency (bit 24), which Linux expects to be set.
pub const HWCR_VALUE: u64 = 1 << 24;

/// Registers of AMD processors that guests read and write without asking CPUID: they read 0, writes are ignored.
pub fn is_pretended(msr: u32) -> bool {
    matches!(
        msr,
        // Machine check: address and type of the Pentium's, status; platform id, microcode level.
        0x00 | 0x01 | 0x17 | 0x8b | 0x179..=0x17b
        // Debug control and last branches.
        | 0x1d9 | 0x1db..=0x1de
        // SYSCFG, HWCR's neighbours, IORRs, TOP_MEM and TOP_MEM2.
        | 0xc001_0010 | 0xc001_0016..=0xc001_001a | 0xc001_001d
        // Machine-check control masks, P-states, SMM base and mask, VM_CR, IGNNE.
        | 0xc001_0044..=0xc001_004a | 0xc001_0055 | 0xc001_0061..=0xc001_0063 | 0xc001_0111..=0xc001_0114
        // Performance counters of the K7.
        | 0xc001_0000..=0xc001_0007
        // Processor and bus configuration: feature overrides, LS, IC, DC, BU, FP configuration.
        | 0xc001_001f | 0xc001_1000..=0xc001_1028 | 0xc001_102a..=0xc001_102f
    )
}
