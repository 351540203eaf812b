//! Descriptor tables and page tables for attempts in each mode.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::raw::{CODE, LOW, SKIPPED, STACK, USER_END, get, put};
use crate::stubs;

/// Selectors of the GDT.
pub const CODE64: u64 = 0x08;
/// All memory, ring 0.
pub const DATA: u64 = 0x10;
/// 32-bit code.
pub const CODE32: u64 = 0x18;
/// 32-bit code of ring 3, from [`CODE`] to [`USER_END`] only.
pub const USER32: u64 = 0x23;
/// Its data.
pub const USER_DATA32: u64 = 0x2b;
/// 64-bit code of ring 3.
pub const USER64: u64 = 0x33;
/// Its data.
pub const USER_DATA: u64 = 0x5b;
const TASK: u64 = 0x48;
/// The first selector that has no descriptor of ours.
pub const FREE: u64 = 0x60;
/// Entries of the GDT.
pub const GDT_ENTRIES: u64 = 64;
/// Where the second half of virtual memory's test window is: one page, whose entry is [`window_entry`].
pub const WINDOW: u64 = 0x80_0000_0000;

/// An aligned piece of memory that the CPU reads.
#[repr(C, align(4096))]
pub struct Page<const N: usize>(UnsafeCell<[u64; N]>);

// SAFETY: it is accessed by address only, from one CPU.
unsafe impl<const N: usize> Sync for Page<N> {}

impl<const N: usize> Page<N> {
    /// Empty.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    /// Where it is.
    pub fn at(&self) -> u64 {
        self.0.get() as u64
    }
}

/// The global descriptor table.
pub static GDT: Page<512> = Page::new();
/// Long mode's interrupt descriptors.
pub static IDT64: Page<512> = Page::new();
/// Protected mode's.
pub static IDT32: Page<512> = Page::new();
/// The task state.
pub static TSS: Page<512> = Page::new();
static LEVEL4: Page<512> = Page::new();
static LEVEL3: Page<512> = Page::new();
static LEVEL2: Page<2048> = Page::new();
static LEVEL1: Page<512> = Page::new();
static WINDOW3: Page<512> = Page::new();
static WINDOW2: Page<512> = Page::new();
static WINDOW1: Page<512> = Page::new();

/// The entry of level 1 for the page at [`WINDOW`].
pub fn window_entry() -> u64 {
    WINDOW1.at()
}

/// The entry of level 2 above it.
pub fn window_table() -> u64 {
    WINDOW2.at()
}

/// Forgets a translation.
pub fn forget(address: u64) {
    // SAFETY: has no effect but on the TLB.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// A gate of long mode: type and attributes as in bits 47:40 of the first word.
pub fn gate64(at: u64, selector: u64, stack: u64, kind: u64) -> [u64; 2] {
    [at & 0xffff | selector << 16 | stack << 32 | kind << 40 | at >> 16 << 48, at >> 32]
}

/// The usual gate of a vector in long mode.
pub fn usual_gate(vector: u64) -> [u64; 2] {
    let kind = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
    gate64(&raw const stubs::hostile_stubs64 as u64 + 16 * vector, CODE64, 1, kind)
}

/// Makes every interrupt descriptor of long mode the usual one.
pub fn usual_gates() {
    (0..256).for_each(|vector| put(IDT64.at() + 16 * vector, usual_gate(vector)));
}

/// The usual descriptors.
pub fn usual_gdt() {
    let (user_base, user_limit) = (CODE, USER_END - CODE - 1);
    let user = |kind: u64| user_limit & 0xffff | user_base << 16 | kind << 40 | 0x4 << 52;
    let task = TSS.at();
    let entries = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        user(0xfb),
        user(0xf3),
        0x00af_fb00_0000_ffff,
        0x0000_9b00_0000_ffff,
        0x0000_9300_0000_ffff,
        0x67 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56,
        task >> 32,
        0x00cf_f300_0000_ffff,
    ];
    (0..GDT_ENTRIES).for_each(|n| put(GDT.at() + 8 * n, entries.get(n as usize).copied().unwrap_or(0)));
}

/// The usual task state: IST 1 for every handler, and protected mode's stack of ring 0.
pub fn usual_task() {
    let top = &raw const stubs::hostile_ist_top as u64;
    let top32 = &raw const stubs::hostile_stack32 as u64;
    (0..26).for_each(|n| put(TSS.at() + 4 * n, 0_u32));
    put(TSS.at() + 4, top32 as u32);
    put(TSS.at() + 8, DATA as u32);
    put(TSS.at() + 36, top);
    // No port is a user's.
    put(TSS.at() + 0x66, 0x68_u16);
}

/// Loads the usual task register; the descriptor was made anew.
pub fn load_task() {
    // SAFETY: the descriptor and the task state are there.
    unsafe { asm!("ltr {:x}", in(reg) TASK, options(nostack, preserves_flags)) };
}

/// Loads it again: it is busy until its descriptor is made anew.
pub fn reload_task() {
    usual_gdt();
    load_task();
}

fn pages() {
    for n in 0..2048 {
        put(LEVEL2.at() + 8 * n, n << 21 | 0x83);
    }
    // The lowest 2 MiB by pages, some of them for users.
    for n in 0..512_u64 {
        let user = if (CODE..USER_END).contains(&(n << 12)) { 4 } else { 0 };
        put(LEVEL1.at() + 8 * n, n << 12 | 3 | user);
    }
    put(LEVEL2.at(), LEVEL1.at() | 7);
    (0..4).for_each(|n| put(LEVEL3.at() + 8 * n, (LEVEL2.at() + 4096 * n) | 7));
    put(LEVEL4.at(), LEVEL3.at() | 7);
    put(LEVEL4.at() + 8, WINDOW3.at() | 7);
    put(WINDOW3.at(), WINDOW2.at() | 7);
    put(WINDOW2.at(), WINDOW1.at() | 7);
}

/// Makes everything and loads it.
pub fn prepare() {
    let (low, end) = (&raw const stubs::hostile_low, &raw const stubs::hostile_low_end);
    for n in 0..end as u64 - low as u64 {
        put(LOW + n, get::<u8>(low as u64 + n));
    }
    let stubs16 = &raw const stubs::hostile_stubs16 as u64 - low as u64 + LOW;
    for vector in 0..256_u64 {
        put(4 * vector, (stubs16 + 16 * vector) as u32);
        let at = &raw const stubs::hostile_stubs32 as u64 + 16 * vector;
        let kind = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
        put(IDT32.at() + 8 * vector, at & 0xffff | CODE32 << 16 | kind << 40 | at >> 16 << 48);
    }
    usual_gates();
    usual_gdt();
    usual_task();
    pages();
    for (at, limit, base) in [
        (0xb120, 8 * GDT_ENTRIES - 1, GDT.at()),
        (0xb130, 4095, IDT64.at()),
        (0xb140, 2047, IDT32.at()),
        (0xb150, 1023, 0),
    ] {
        put(at, limit as u16);
        put(at + 2, base);
    }
    let (cr0, cr4): (u64, u64);
    // SAFETY: the tables map all memory as it is, like those that they replace.
    unsafe {
        asm!("mov cr3, {}", in(reg) LEVEL4.at(), options(nostack, preserves_flags));
        asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nostack, preserves_flags));
        asm!("lgdt [{0}]", "lidt [{1}]", in(reg) 0xb120_u64, in(reg) 0xb130_u64, options(nostack, preserves_flags));
    }
    put(0xb108, cr0);
    put(0xb110, LEVEL4.at());
    put(0xb118, cr4);
    load_task();
    crate::raw::fill(SKIPPED, STACK - SKIPPED, 0);
    // What is left of real mode's segment.
    crate::raw::fill(STACK, CODE + 0x1_0000 - STACK, crate::attempt::END);
}
