//! The boot CPU builds the kernel's half of every address space, once, and moves into it.
//!
//! Until [`init`] switched tables, the board maps physical memory where the kernel maps its own frames afterwards.

use caisson_core::frames::FrameTable;
use caisson_core::{early::Frames, early::LOW_END, early::touched, frames};

use crate::{prelude::*, svm::features::IOPM_FRAMES};

/// What the board says.
pub(crate) static BOARD: Once<BootInfo> = Once::new();

/// Why the machine can't run the kernel.
pub type Lacking = &'static str;
const NO_MEMORY: Lacking = "memory, which ends at boot";

unsafe extern "C" {
    static __kernel_start: u8;
    static __kernel_text: u8;
    static __kernel_data: u8;
    static __kernel_end: u8;
}

/// The page of an address, in its tree.
const fn page_of(address: u64) -> u64 {
    address / PAGE_SIZE % Tree::nested(Frame(0)).end()
}

/// Memory before the kernel's own accounting: what [`init`] maps, and what is taken until [`Early::finish`].
pub struct Early {
    frames: Frames,
    /// So many frames there are.
    pub(crate) count: u64,
}

impl Early {
    /// The table of this level for an address.
    fn reach(&mut self, root: Frame, address: u64, level: u32) -> Option<Frame> {
        npt::reach(&mut Mapped, Tree::nested(root), page_of(address), level, self).ok()
    }

    /// Maps frames in a row.
    fn map(&mut self, root: Frame, address: u64, first: Frame, pages: u64, bits: u64) -> Option<()> {
        for page in 0..pages {
            let table = self.reach(root, address + page * PAGE_SIZE, 1)?;
            let index = page_of(address) + page;
            Mapped.write(table, index as usize, npt::entry(Frame(first.0 + page), bits));
        }
        Some(())
    }

    /// The image: text is executed, data is written, the rest only read.
    fn map_image(&mut self, root: Frame) -> Option<()> {
        let symbols =
            [&raw const __kernel_start, &raw const __kernel_text, &raw const __kernel_data, &raw const __kernel_end];
        let [start, text, data, end] = symbols.map(|symbol| symbol as u64);
        for (from, to, bits) in [(start, text, READ), (text, data, CODE), (data, end, DATA)] {
            let first = Frame((from - KERNEL_BASE) / PAGE_SIZE);
            self.map(root, from, first, (to - from) / PAGE_SIZE, bits)?;
        }
        Some(())
    }

    /// A word for each frame in the table, and an entry for each in [`FRAMES_MAP`].
    fn map_frames(&mut self, root: Frame) -> Option<()> {
        for page in 0..self.count.div_ceil(LARGE_PAGES) {
            let words = self.take_frames(1)?;
            let entries = self.reach(root, FRAMES_MAP + page * LARGE_PAGES * PAGE_SIZE, 1)?;
            self.map(root, FRAME_TABLE + page * PAGE_SIZE, words, 1, DATA)?;
            self.map(root, FRAME_PTES + page * PAGE_SIZE, entries, 1, DATA)?;
        }
        Some(())
    }

    /// A PML4 whose upper half all CPUs share: everything but [`PERCPU`].
    fn shared(&mut self, boot: &BootInfo) -> Option<Frame> {
        let root = self.take_frames(1)?;
        self.map_image(root)?;
        self.map_frames(root)?;
        self.map(root, LOCAL_APIC, boot.local_apic.frame(), 1, DEVICE)?;
        self.map(root, IO_APIC, boot.io_apic.frame(), 1, DEVICE)?;
        self.map(root, TRAMPOLINE, Frame(TRAMPOLINE / PAGE_SIZE), 1, npt::PRESENT | npt::ACCESSED)?;
        let idt = self.take_frames(1)?;
        traps::fill_idt(idt);
        self.map(root, IDT, idt, 1, READ)?;
        Some(root)
    }

    /// A CPU's PML4 and all that it has to itself.
    fn cpu(&mut self, cpu: CpuId, root: Frame, shared: Frame, features: Features) -> Option<()> {
        (0..512).for_each(|index| Mapped.write(root, index, Mapped.read(shared, index)));
        let [upper, image] = [self.take_frames(1)?, self.reach(shared, KERNEL_BASE, 3)?];
        Mapped.write(root, 511, npt::entry(upper, npt::TABLE));
        Mapped.write(upper, 510, Mapped.read(image, 510));
        let own_pages = (size_of::<PerCpu>() as u64).div_ceil(PAGE_SIZE);
        let own = self.take_frames(own_pages)?;
        let state = PerCpu::new(cpu, root, features, self.take_frames(2)?);
        // SAFETY: these frames were just taken and are mapped; they are as many as the structure takes.
        unsafe { (kmap::ptr(own) as *mut PerCpu).write(state) };
        self.map(root, PERCPU, own, own_pages, DATA)?;
        self.map(root, OWN_PML4, root, 1, DATA)?;
        let table = self.reach(root, OWN_TABLE, 1)?;
        self.map(root, OWN_TABLE, table, 1, DATA)?;
        let ist = IST_TOPS.map(|top| (top, IST_PAGES));
        for (top, pages) in [(STACK_TOP, STACK_PAGES)].into_iter().chain(ist) {
            let stack = self.take_frames(pages)?;
            self.map(root, top - pages * PAGE_SIZE, stack, pages, DATA)?;
        }
        Some(())
    }

    /// The bundle, as the boot loader put it there.
    pub fn bundle(&self, at: &Range) -> &'static [u8] {
        // SAFETY: `init` mapped its frames read-only; they are the kernel's for good and never written.
        unsafe { core::slice::from_raw_parts(kmap::ptr(at.start.frame()), at.bytes as usize) }
    }

    /// Zeroed frames in a row, mapped for the kernel.
    pub fn take_frames(&mut self, count: u64) -> Option<Frame> {
        let first = self.frames.take(count)?;
        for frame in (first.0..first.0 + count).map(Frame) {
            kmap::map(frame);
            kmap::zero(frame);
        }
        Some(first)
    }

    /// The end of early allocation: the kernel's frame table, which says what every frame is. The kernel's are the
    /// low megabyte, image, bundle, and everything that was allocated.
    pub fn finish(self, boot: &BootInfo) -> FrameTable {
        // SAFETY: `init` mapped so many zero words there, for good, and nothing else refers to them.
        let words = unsafe { core::slice::from_raw_parts(FRAME_TABLE as *const AtomicU64, self.count as usize) };
        let table = FrameTable::new(words);
        let usable = boot.memory.iter().map(touched);
        for (first, end) in usable.clone() {
            table.declare(Frame(first), end - first, frames::Frames::free(false));
        }
        let low = usable.map(|(first, end)| (first, end.min(LOW_END)));
        for (first, end) in low.chain([touched(&boot.kernel), touched(&boot.bundle), self.frames.taken()]) {
            table.declare(Frame(first), end.saturating_sub(first), frames::Frames::plain(FrameState::Kernel));
        }
        table
    }
}

/// Builds the tables, moves the boot CPU into them, masks every interrupt and measures the clocks. On return the
/// boot CPU is like any other, but for its stack, which is the board's until ring 3 is entered.
///
/// # Errors
/// What this machine lacks.
pub fn init(boot: &BootInfo) -> Result<Early, Lacking> {
    BOARD.call_once(|| boot.clone());
    cpu::detect()?;
    if !boot.bundle.start.0.is_multiple_of(PAGE_SIZE) {
        return Err("a bundle that is page-aligned");
    }
    let end = boot.memory.iter().map(|range| range.start.0 + range.bytes).max();
    let count = end.ok_or(NO_MEMORY)? / PAGE_SIZE;
    if count > MAX_FRAMES {
        return Err("a view of so much memory");
    }
    let mut early = Early { frames: Frames::new(boot), count };
    let shared = early.shared(boot).ok_or(NO_MEMORY)?;
    let iopm = early.take_frames(IOPM_FRAMES).ok_or(NO_MEMORY)?;
    (0..IOPM_FRAMES * 512).for_each(|word| Mapped.write(Frame(iopm.0 + word / 512), word as usize, u64::MAX));
    let features = Features::detect(&boot.quirks, iopm);
    let own = early.take_frames(boot.cpus.len() as u64).ok_or(NO_MEMORY)?;
    for (number, root) in (0..boot.cpus.len() as u16).zip(own.0..) {
        early.cpu(CpuId(number), Frame(root), shared, features).ok_or(NO_MEMORY)?;
    }
    // SAFETY: the new tables map what runs now where it is: image, its data and with them the stack. Nothing below
    // uses the board's map of physical memory.
    unsafe { asm!("mov cr3, {}", in(reg) own.spa().0, options(nostack)) };
    smp::ready();
    kmap::init(count);
    let (first, last) = early.frames.taken();
    (first..last).for_each(|number| kmap::map(Frame(number)));
    let (first, last) = touched(&boot.bundle);
    (first..last).for_each(|number| kmap::map_as(Frame(number), READ));
    ioapic::init();
    if clock::calibrate(boot.timer_khz) { Ok(early) } else { Err("an APIC timer that counts") }
}

impl TablePool for Early {
    fn take(&mut self) -> Option<Frame> {
        self.take_frames(1)
    }

    fn give_back(&mut self, _: Frame) {}
}
