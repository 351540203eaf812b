//! The processor state in which a kernel is entered, and the one after INIT.

use alloc::vec::Vec;

use caisson_proto::vcpu::{Save, Segment, VcpuState};

use super::{mbi, place};

/// CR0: protected mode, extension type, paging.
const CR0_64: u64 = 0x8000_0011;
/// CR0: protected mode, extension type.
const CR0_32: u64 = 0x11;
/// CR4: physical address extension.
const CR4_64: u64 = 0x20;
/// EFER: long mode enabled and active.
const EFER_64: u64 = 0x500;
/// PAT after reset (APM volume 2, section 7.8.1).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// The code selector that the boot protocol asks for.
const BOOT_CS: u16 = 0x10;
/// The data selector that the boot protocol asks for.
const BOOT_DS: u16 = 0x18;

/// The descriptors of `BOOT_CS` and `BOOT_DS`: flat, 64-bit code and data.
pub fn gdt() -> Vec<u8> {
    [0_u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Page tables at `at` that map the first 4 GiB to themselves: one page of level 4, one of level 3, four of
/// level 2.
pub fn identity_map(at: u64) -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let level_4 = (0..512).map(|n| if n == 0 { (at + 4096) | PRESENT_WRITABLE } else { 0 });
    let level_3 = (0..512).map(|n| if n < 4 { (at + 8192 + n * 4096) | PRESENT_WRITABLE } else { 0 });
    let level_2 = (0..4 * 512).map(|n| n << 21 | LARGE | PRESENT_WRITABLE);
    level_4.chain(level_3).chain(level_2).flat_map(u64::to_le_bytes).collect()
}

/// The state after INIT (APM volume 2, section 14.1.3), at the reset vector.
pub fn after_init(tsc_offset: u64) -> VcpuState {
    let data = Segment { selector: 0, attributes: 0x093, limit: 0xffff, base: 0 };
    let code = Segment { selector: 0xf000, attributes: 0x09b, limit: 0xffff, base: 0xffff_0000 };
    let table = Segment { selector: 0, attributes: 0, limit: 0xffff, base: 0 };
    let save = Save {
        rip: 0xfff0,
        rflags: 2,
        segments: [data, code, data, data, data, data],
        ldtr: Segment { attributes: 0x082, ..table },
        tr: Segment { attributes: 0x08b, ..table },
        gdtr: table,
        idtr: table,
        cr0: 0x6000_0010,
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        pat: PAT_RESET,
        ..Save::default()
    };
    VcpuState { save, xcr0: 1, tsc_offset, ..VcpuState::default() }
}

/// The state after a start-up IPI: real mode at `vector` × 4096.
pub fn after_sipi(vector: u8, tsc_offset: u64) -> VcpuState {
    let mut state = after_init(tsc_offset);
    let [_, code, ..] = &mut state.segments;
    *code = Segment { selector: u16::from(vector) << 8, base: u64::from(vector) << 12, ..*code };
    state.rip = 0;
    state
}

/// The state in which the 64-bit boot protocol enters a kernel.
pub fn boot_64(entry: u64, tsc_offset: u64) -> VcpuState {
    let data = Segment { selector: BOOT_DS, attributes: 0xc93, limit: u32::MAX, base: 0 };
    let code = Segment { selector: BOOT_CS, attributes: 0xa9b, limit: u32::MAX, base: 0 };
    let mut state = after_init(tsc_offset);
    state.save = Save {
        rip: entry,
        segments: [data, code, data, data, data, data],
        gdtr: Segment { limit: 4 * 8 - 1, base: place::GDT, ..Segment::default() },
        idtr: Segment::default(),
        cr0: CR0_64,
        cr3: place::TABLES,
        cr4: CR4_64,
        efer: EFER_64,
        ..state.save
    };
    // rsi points to the boot parameters.
    if let Some(rsi) = state.gpr.get_mut(6) {
        *rsi = place::ZERO_PAGE;
    }
    state
}

/// The state in which Multiboot enters a kernel: flat 32-bit protected mode without paging.
pub fn boot_32(entry: u64, tsc_offset: u64) -> VcpuState {
    let data = Segment { selector: 0x10, attributes: 0xc93, limit: u32::MAX, base: 0 };
    let code = Segment { selector: 0x08, attributes: 0xc9b, limit: u32::MAX, base: 0 };
    let mut state = after_init(tsc_offset);
    state.save = Save {
        rip: entry,
        segments: [data, code, data, data, data, data],
        gdtr: Segment { limit: 3 * 8 - 1, base: mbi::place::GDT, ..Segment::default() },
        idtr: Segment::default(),
        cr0: CR0_32,
        ..state.save
    };
    let [rax, _, _, rbx, ..] = &mut state.gpr;
    (*rax, *rbx) = (u64::from(mbi::BOOT_MAGIC), mbi::place::INFO);
    state
}

/// The descriptors that [`boot_32`] has loaded.
pub fn gdt_32() -> Vec<u8> {
    [0_u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff].iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
