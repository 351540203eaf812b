//! The boot CPU builds the kernel's half of every address space, once, and moves into it.
//!
//! Until [`init`] switched tables, physical memory is reached at its own addresses, as the board mapped it.

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

const READ: Bits = Bits::PRESENT.union(Bits::ACCESSED).union(Bits::GLOBAL);
const DATA: Bits = Bits::DATA.union(Bits::GLOBAL);
const DEVICE: Bits = DATA.union(Bits::PCD).union(Bits::PWT);

/// Makes tables through the board's identity map.
struct Builder {
    frames: Frames,
    /// A PML4 whose upper half all CPUs share, but for [`PERCPU`].
    shared: Frame,
    iopm: Frame,
}

impl Builder {
    /// Zeroed frames in a row.
    fn take(&mut self, count: u64) -> Result<Frame, Lacking> {
        let first = self.frames.take(count).ok_or(NO_MEMORY)?;
        (first.0..first.0 + count).for_each(|frame| self.table(Frame(frame)).fill(0));
        Ok(first)
    }

    /// A frame that this builder took, before the switch.
    fn table(&mut self, frame: Frame) -> &mut [u64; 512] {
        // SAFETY: the board maps RAM at its own addresses; nobody but the builder knows its frames, and it lends one
        // at a time.
        unsafe { &mut *(frame.spa().0 as *mut [u64; 512]) }
    }

    /// The slot of `address` in its table of level `target` below a root, with the tables on the way.
    fn slot(&mut self, root: Frame, address: u64, target: u32) -> Result<&mut u64, Lacking> {
        let index = |level: u32| (address >> (3 + 9 * level) & 511) as usize;
        let mut table = root;
        for level in (target + 1..=4).rev() {
            if self.table(table)[index(level)] == 0 {
                self.table(table)[index(level)] = entry(self.take(1)?, Bits::TABLE);
            }
            table = frame_of(self.table(table)[index(level)]);
        }
        Ok(&mut self.table(table)[index(target)])
    }

    /// Maps frames in a row.
    fn map(&mut self, root: Frame, address: u64, first: Frame, pages: u64, bits: Bits) -> Result<(), Lacking> {
        for page in 0..pages {
            *self.slot(root, address + page * PAGE_SIZE, 1)? = entry(Frame(first.0 + page), bits);
        }
        Ok(())
    }

    /// The image: text is executed, data is written, the rest only read.
    fn map_image(&mut self) -> Result<(), Lacking> {
        let symbols =
            [&raw const __kernel_start, &raw const __kernel_text, &raw const __kernel_data, &raw const __kernel_end];
        let [start, text, data, end] = symbols.map(|symbol| symbol as u64);
        for (from, to, bits) in [(start, text, READ | Bits::NX), (text, data, READ), (data, end, DATA)] {
            let first = Frame((from - KERNEL_BASE) / PAGE_SIZE);
            self.map(self.shared, from, first, (to - from) / PAGE_SIZE, bits)?;
        }
        Ok(())
    }

    /// A word for each frame in the table, and an entry for each in [`FRAMES_MAP`].
    fn map_frames(&mut self, frames: u64) -> Result<(), Lacking> {
        for page in 0..frames.div_ceil(LARGE_PAGES) {
            let [words, entries] = [self.take(1)?, self.take(1)?];
            self.map(self.shared, FRAME_TABLE + page * PAGE_SIZE, words, 1, DATA)?;
            self.map(self.shared, FRAME_PTES + page * PAGE_SIZE, entries, 1, DATA)?;
            *self.slot(self.shared, FRAMES_MAP + page * LARGE_PAGES * PAGE_SIZE, 2)? = entry(entries, Bits::TABLE);
        }
        Ok(())
    }

    /// What all CPUs share: everything but [`PERCPU`].
    fn share(&mut self, boot: &BootInfo, frames: u64) -> Result<(), Lacking> {
        self.shared = self.take(1)?;
        self.map_image()?;
        self.map_frames(frames)?;
        self.map(self.shared, LOCAL_APIC, boot.local_apic.frame(), 1, DEVICE)?;
        self.map(self.shared, IO_APIC, boot.io_apic.frame(), 1, DEVICE)?;
        self.map(self.shared, TRAMPOLINE, Frame(TRAMPOLINE / PAGE_SIZE), 1, READ.difference(Bits::GLOBAL))?;
        let idt = self.take(1)?;
        traps::fill_idt(self.table(idt));
        self.map(self.shared, IDT, idt, 1, READ | Bits::NX)?;
        self.iopm = self.take(IOPM_FRAMES)?;
        (0..IOPM_FRAMES).for_each(|page| self.table(Frame(self.iopm.0 + page)).fill(u64::MAX));
        Ok(())
    }

    /// A CPU's PML4 and all that it has to itself.
    fn cpu(&mut self, cpu: CpuId, features: Features) -> Result<Frame, Lacking> {
        let [root, upper] = [self.take(1)?, self.take(1)?];
        let shared = *self.table(self.shared);
        self.table(root).copy_from_slice(&shared);
        self.table(root)[511] = entry(upper, Bits::TABLE);
        self.table(upper)[510] = *self.slot(self.shared, KERNEL_BASE, 3)?;
        let task = self.take(TSS_PAGES)?;
        let own_pages = (size_of::<PerCpu>() as u64).div_ceil(PAGE_SIZE);
        let own = self.take(own_pages)?;
        let state = PerCpu::new(cpu, root, features, [self.take(1)?, self.take(1)?]);
        // SAFETY: these frames are this builder's, zeroed, and mapped at their own addresses; they are as many as
        // the structures take.
        unsafe {
            (own.spa().0 as *mut PerCpu).write(state);
            segments::write_task_state(task.spa().0 as *mut u8);
        }
        self.map(root, PERCPU, own, own_pages, DATA)?;
        self.map(root, TSS, task, TSS_PAGES, DATA)?;
        for (address, level) in [(OWN_PML4, 4), (OWN_TABLE, 1)] {
            let mut table = root;
            for above in (level + 1..=4).rev() {
                table = frame_of(*self.slot(root, PERCPU, above)?);
            }
            self.map(root, address, table, 1, DATA)?;
        }
        let ist = [DOUBLE_FAULT_TOP, NMI_TOP, MACHINE_CHECK_TOP].map(|top| (top, IST_PAGES));
        for (top, pages) in [(STACK_TOP, STACK_PAGES)].into_iter().chain(ist) {
            let stack = self.take(pages)?;
            self.map(root, top - pages * PAGE_SIZE, stack, pages, DATA)?;
        }
        Ok(root)
    }
}

/// Builds the tables, moves the boot CPU into them, masks every interrupt and measures the clocks. On return the
/// boot CPU is like any other, but for its stack, which is the board's until ring 3 is entered.
///
/// # Errors
/// What this machine lacks.
pub fn init(boot: &BootInfo) -> Result<Early, Lacking> {
    clock::start();
    BOARD.call_once(|| boot.clone());
    cpu::detect(boot.quirks.assume_wbnoinvd)?;
    if !boot.bundle.start.0.is_multiple_of(PAGE_SIZE) {
        return Err("a bundle that is page-aligned");
    }
    let end = boot.memory.iter().map(|range| range.start.0 + range.bytes).max();
    let count = end.ok_or(NO_MEMORY)? / PAGE_SIZE;
    if count > MAX_FRAMES {
        return Err("a view of so much memory");
    }
    let mut builder = Builder { frames: Frames::new(boot), shared: Frame(0), iopm: Frame(0) };
    builder.share(boot, count)?;
    let features = Features::detect(&boot.quirks, builder.iopm);
    let mut roots = heapless::Vec::<Frame, MAX_CPUS>::new();
    for number in 0..boot.cpus.len() as u16 {
        roots.push(builder.cpu(CpuId(number), features)?).map_err(|_| "a place for so many CPUs")?;
    }
    let own = roots.first().ok_or("CPUs")?.spa().0;
    // SAFETY: the new tables map what runs now where it is: image, its data and with them the stack. Nothing below
    // uses the board's map of physical memory.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) own, options(nostack)) };
    smp::ready();
    smp::ROOTS.call_once(|| roots);
    kmap::init(count);
    let (first, last) = builder.frames.taken();
    (first..last).for_each(|number| kmap::map(Frame(number)));
    let (first, last) = touched(&boot.bundle);
    (first..last).for_each(|number| kmap::map_as(Frame(number), READ | Bits::NX));
    ioapic::init();
    let counts = clock::calibrate(boot.timer_khz);
    if counts { Ok(Early { frames: builder.frames, count }) } else { Err("an APIC timer that counts") }
}

/// Memory between [`init`] and the kernel's own accounting.
pub struct Early {
    frames: Frames,
    count: u64,
}

impl Early {
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

impl TablePool for Early {
    fn take(&mut self) -> Option<Frame> {
        self.take_frames(1)
    }

    fn give_back(&mut self, _: Frame) {}
}
