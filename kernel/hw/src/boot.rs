//! The boot CPU builds the kernel's half of every address space, once, and moves into it.
//!
//! Until [`init`] switched tables, physical memory is reached at its own addresses, as the board mapped it.

use core::sync::atomic::AtomicU64;

use caisson_core::boot::{BootInfo, Range};
use caisson_core::early::{FrameRange, Frames, LOW_END, MAX_RANGES, touched};
use caisson_core::machine::TablePool;
use caisson_proto::addr::{CpuId, Frame, LARGE_PAGES, PAGE_SIZE};
use heapless::Vec;

use crate::layout::*;
use crate::percpu::PerCpu;
use crate::tables::{Bits, entry, frame_of};
use crate::{apic, clock, cpu, ioapic, kmap, log, power, segments, smp, traps};

/// Why the machine can't run the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum InitError {
    /// The processor lacks something.
    Cpu(cpu::Missing),
    /// Memory ends while the first tables are made.
    OutOfMemory,
    /// There is memory above what [`FRAMES_MAP`] covers.
    TooMuchMemory,
    /// The bundle isn't page-aligned.
    Bundle,
    /// The 8254 doesn't count, so nothing tells the time.
    NoClock,
}

unsafe extern "C" {
    static __kernel_start: u8;
    static __kernel_text: u8;
    static __kernel_data: u8;
    static __kernel_end: u8;
}

const TABLE: Bits = Bits::PRESENT.union(Bits::WRITE);
const READ: Bits = Bits::PRESENT.union(Bits::ACCESSED).union(Bits::GLOBAL);
const DATA: Bits = READ.union(Bits::WRITE).union(Bits::DIRTY).union(Bits::NX);
const DEVICE: Bits = DATA.union(Bits::PCD).union(Bits::PWT);

/// Makes tables through the board's identity map.
struct Builder<'a> {
    frames: &'a mut Frames,
    /// A PML4 whose upper half all CPUs share, but for [`PERCPU`].
    shared: Frame,
}

/// A frame before the switch.
fn at(frame: Frame) -> *mut u64 {
    frame.spa().0 as *mut u64
}

impl Builder<'_> {
    /// Zeroed frames in a row.
    fn take(&mut self, count: u64) -> Result<Frame, InitError> {
        let frame = self.frames.take(count).ok_or(InitError::OutOfMemory)?;
        // SAFETY: the board maps RAM at its own addresses, and nobody had these frames before.
        unsafe { at(frame).write_bytes(0, (count * LARGE_PAGES) as usize) };
        Ok(frame)
    }

    /// The slot of `address` in its table of level `target`, with the tables on the way.
    fn slot(&mut self, address: u64, target: u32) -> Result<*mut u64, InitError> {
        let mut table = self.shared;
        for level in (target..=4).rev() {
            let index = address >> (3 + 9 * level) & 511;
            let slot = at(table).wrapping_add(index as usize);
            if level == target {
                return Ok(slot);
            }
            // SAFETY: the slot lies in a table that this builder made.
            unsafe {
                if slot.read() == 0 {
                    slot.write(entry(self.take(1)?, TABLE));
                }
                table = frame_of(slot.read());
            }
        }
        Err(InitError::OutOfMemory)
    }

    fn map(&mut self, address: u64, frame: Frame, bits: Bits) -> Result<(), InitError> {
        let slot = self.slot(address, 1)?;
        // SAFETY: the slot lies in a table that this builder made.
        unsafe { slot.write(entry(frame, bits)) };
        Ok(())
    }

    /// The image: text is executed, data is written, the rest only read.
    fn map_image(&mut self) -> Result<(), InitError> {
        let start = &raw const __kernel_start as u64;
        let text = &raw const __kernel_text as u64;
        let data = &raw const __kernel_data as u64;
        let end = &raw const __kernel_end as u64;
        for address in (start..end).step_by(PAGE_SIZE as usize) {
            let bits = match address {
                _ if address < text => READ | Bits::NX,
                _ if address < data => READ,
                _ => DATA,
            };
            self.map(address, Frame((address - KERNEL_BASE) / PAGE_SIZE), bits)?;
        }
        Ok(())
    }

    /// A word for each frame in the table, and an entry for each in [`FRAMES_MAP`].
    fn map_frames(&mut self, frames: u64) -> Result<(), InitError> {
        for page in 0..frames.div_ceil(LARGE_PAGES) {
            let words = self.take(1)?;
            self.map(FRAME_TABLE + page * PAGE_SIZE, words, DATA)?;
            let entries = self.take(1)?;
            let slot = self.slot(FRAMES_MAP + page * LARGE_PAGES * PAGE_SIZE, 2)?;
            // SAFETY: the slot lies in a table that this builder made.
            unsafe { slot.write(entry(entries, TABLE)) };
            self.map(FRAME_PTES + page * PAGE_SIZE, entries, DATA)?;
        }
        Ok(())
    }

    /// A CPU's PML4 and all that it has to itself.
    fn cpu(&mut self, cpu: CpuId) -> Result<Frame, InitError> {
        let [root, upper, directory, table] = [self.take(1)?, self.take(1)?, self.take(1)?, self.take(1)?];
        let own = self.take(PERCPU_PAGES.min((size_of::<PerCpu>() as u64).div_ceil(PAGE_SIZE)))?;
        let task = self.take(TSS_PAGES)?;
        let shared_upper = self.slot(KERNEL_BASE, 3)?;
        // SAFETY: these frames are this builder's, zeroed; all indices are below 512.
        unsafe {
            at(root).add(256).copy_from_nonoverlapping(at(self.shared).add(256), 255);
            at(root).add(511).write(entry(upper, TABLE));
            at(upper).add(510).write(shared_upper.read());
            at(upper).add(511).write(entry(directory, TABLE));
            at(directory).write(entry(table, TABLE));
            at(own).cast::<PerCpu>().write(PerCpu::new(cpu, root.spa().0));
            segments::write_task_state(at(task).cast());
        }
        let map = |address: u64, first: Frame, pages: u64| {
            for page in 0..pages {
                let index = (address - PERCPU) / PAGE_SIZE + page;
                // SAFETY: every address lies in the first 2 MiB of the area, which this table maps.
                unsafe { at(table).add(index as usize).write(entry(Frame(first.0 + page), DATA)) };
            }
        };
        map(PERCPU, own, (size_of::<PerCpu>() as u64).div_ceil(PAGE_SIZE));
        map(OWN_PML4, root, 1);
        map(OWN_DIRECTORY, directory, 1);
        map(OWN_TABLE, table, 1);
        map(TSS, task, TSS_PAGES);
        let stacks = [(STACK_TOP, STACK_PAGES)]
            .into_iter()
            .chain([DOUBLE_FAULT_TOP, NMI_TOP, MACHINE_CHECK_TOP].map(|top| (top, IST_PAGES)));
        for (top, pages) in stacks {
            map(top - pages * PAGE_SIZE, self.take(pages)?, pages);
        }
        Ok(root)
    }
}

/// Builds the tables, moves the boot CPU into them, masks every interrupt and measures the clocks. On return the
/// boot CPU is like any other, but for its stack, which is the board's until ring 3 is entered.
///
/// # Errors
/// [`InitError`] says why this machine can't run the kernel.
pub fn init(boot: &BootInfo) -> Result<Early, InitError> {
    clock::start();
    power::init(boot.power_off);
    log::init(boot.log_port);
    cpu::detect(boot.quirks.assume_wbnoinvd).map_err(InitError::Cpu)?;
    if !boot.bundle.start.0.is_multiple_of(PAGE_SIZE) {
        return Err(InitError::Bundle);
    }
    let end = boot.memory.iter().map(|range| range.start.0 + range.bytes).max();
    let count = end.ok_or(InitError::OutOfMemory)? / PAGE_SIZE;
    if count > MAX_FRAMES {
        return Err(InitError::TooMuchMemory);
    }
    let mut frames = Frames::new(boot);
    let mut builder = Builder { frames: &mut frames, shared: Frame(0) };
    builder.shared = builder.take(1)?;
    builder.map_image()?;
    builder.map_frames(count)?;
    builder.map(LOCAL_APIC, boot.local_apic.frame(), DEVICE)?;
    builder.map(IO_APIC, boot.io_apic.frame(), DEVICE)?;
    let idt = builder.take(1)?;
    // SAFETY: the frame is this builder's.
    unsafe { traps::write_idt(at(idt).cast()) };
    builder.map(IDT, idt, READ | Bits::NX)?;
    for (number, id) in boot.cpus.iter().enumerate() {
        let cpu = CpuId(number as u16);
        apic::set_id(cpu, *id);
        smp::set_root(cpu, builder.cpu(cpu)?);
    }
    // SAFETY: the new tables map what runs now where it is: image, its data and with them the stack. Nothing below
    // uses the board's map of physical memory.
    unsafe { smp::switch_to(smp::root(CpuId(0))) };
    cpu::enable();
    segments::load();
    kmap::init(count);
    for range in frames.taken() {
        (0..range.count).for_each(|number| _ = kmap::map(Frame(range.first.0 + number)));
    }
    let (first, last) = touched(&boot.bundle);
    (first..last).for_each(|number| _ = kmap::map_read_only(Frame(number)));
    ioapic::init();
    apic::enable();
    if !clock::calibrate() {
        return Err(InitError::NoClock);
    }
    let low = boot.memory.iter().filter(|range| range.start.frame().0 < LOW_END);
    let low = low.map(touched).map(|(first, end)| (first, end.min(LOW_END)));
    let kernel = low.chain([touched(&boot.kernel), (first, last)]).map(between).collect();
    Ok(Early { frames, kernel, bundle: boot.bundle, count })
}

fn between((first, end): (u64, u64)) -> FrameRange {
    FrameRange { first: Frame(first), count: end - first }
}

/// Memory between [`init`] and the kernel's own accounting.
#[derive(Debug)]
pub struct Early {
    frames: Frames,
    kernel: Vec<FrameRange, MAX_RANGES>,
    bundle: Range,
    count: u64,
}

/// How memory stands when the kernel takes over. A frame in neither list isn't usable RAM.
#[derive(Debug)]
pub struct Settled {
    /// The kernel's: low megabyte, image, bundle, and everything that was allocated.
    pub kernel: Vec<FrameRange, { 2 * MAX_RANGES }>,
    /// Nobody's.
    pub free: Vec<FrameRange, MAX_RANGES>,
}

impl Early {
    /// The kernel's frame table: a word for each frame number, zero.
    pub fn frame_table(&self) -> &'static [AtomicU64] {
        // SAFETY: `init` mapped so many words there, for good, and nothing else refers to them.
        unsafe { core::slice::from_raw_parts(FRAME_TABLE as *const AtomicU64, self.count as usize) }
    }

    /// The bundle, as the boot loader put it there.
    pub fn bundle(&self) -> &'static [u8] {
        let start = kmap::ptr(self.bundle.start.frame());
        // SAFETY: `init` mapped its frames read-only; they are the kernel's for good and never written.
        unsafe { core::slice::from_raw_parts(start, self.bundle.bytes as usize) }
    }

    /// A zeroed frame, mapped for the kernel.
    pub fn alloc_frame(&mut self) -> Option<Frame> {
        self.alloc_frames(1)
    }

    /// Zeroed frames in a row, mapped for the kernel.
    pub fn alloc_frames(&mut self, count: u64) -> Option<Frame> {
        let first = self.frames.take(count)?;
        for number in first.0..first.0 + count {
            kmap::map(Frame(number));
            kmap::zero(Frame(number));
        }
        Some(first)
    }

    /// The end of early allocation.
    pub fn finish(self) -> Settled {
        let taken = self.frames.taken().filter(|range| range.count != 0);
        Settled { kernel: self.kernel.iter().copied().chain(taken).collect(), free: self.frames.rest().collect() }
    }
}

impl TablePool for Early {
    fn take(&mut self) -> Option<Frame> {
        self.alloc_frame()
    }

    fn give_back(&mut self, _: Frame) {}
}
