//! Where things lie in the kernel's half of an address space, in bytes.
//!
//! | slot of the PML4 | what |
//! |---|---|
//! | 0 | the service that is loaded here: its PDPT |
//! | 256 to 319 | [`FRAMES_MAP`]: frame f at `FRAMES_MAP + f * 4096`, present only while it is mapped by `kmap` |
//! | 320 | [`FRAME_TABLE`]: a word of the kernel's frame table for each frame |
//! | 321 | [`FRAME_PTES`]: the page-table entry of each frame in `FRAMES_MAP` |
//! | 511 | image, devices, and this CPU's own area |
//!
//! Each CPU has a PML4 and a PDPT for slot 511 of its own; all below them but [`PERCPU`] is shared. What a CPU has to
//! itself lies at one fixed address in the top 2 GiB, so that an instruction reaches it by a 32-bit displacement.

use caisson_proto::addr::PAGE_SIZE;

/// Virtual minus physical address of the image.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Kernel frames.
pub const FRAMES_MAP: u64 = 0xffff_8000_0000_0000;
/// Frame numbers are below this: 32 TiB.
pub const MAX_FRAMES: u64 = 64 << 27;
/// The frame table.
pub const FRAME_TABLE: u64 = 0xffff_a000_0000_0000;
/// Page-table entries of [`FRAMES_MAP`].
pub const FRAME_PTES: u64 = 0xffff_a080_0000_0000;

/// Local APIC.
pub const LOCAL_APIC: u64 = 0xffff_ffff_bfe0_0000;
/// I/O APIC.
pub const IO_APIC: u64 = LOCAL_APIC + PAGE_SIZE;
/// Interrupt descriptor table, read-only.
pub const IDT: u64 = LOCAL_APIC + 2 * PAGE_SIZE;

/// This CPU's own area, 2 MiB of small pages: its `PerCpu` first.
pub const PERCPU: u64 = 0xffff_ffff_c000_0000;
/// Pages that `PerCpu` may take.
pub const PERCPU_PAGES: u64 = 16;
/// This CPU's PML4.
pub const OWN_PML4: u64 = PERCPU + 16 * PAGE_SIZE;
/// The page table of this CPU's area.
pub const OWN_TABLE: u64 = PERCPU + 18 * PAGE_SIZE;
/// Just above the kernel stack.
pub const STACK_TOP: u64 = PERCPU + 48 * PAGE_SIZE;
/// Pages of the kernel stack; nothing is mapped below it.
pub const STACK_PAGES: u64 = 12;
/// Just above the stacks of double faults, non-maskable interrupts and machine checks.
pub const IST_TOPS: [u64; 3] = [PERCPU + 56 * PAGE_SIZE, PERCPU + 64 * PAGE_SIZE, PERCPU + 72 * PAGE_SIZE];
/// Pages of each of those three; nothing is mapped below them.
pub const IST_PAGES: u64 = 4;
/// The window.
pub const WINDOW: u64 = PERCPU + 100 * PAGE_SIZE;

/// Page of the trampoline for other CPUs, mapped at its own address until a service is loaded. Below 1 MiB.
pub const TRAMPOLINE: u64 = 0x8000;
