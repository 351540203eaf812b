//! The pages of a step aside: page tables, copies of devices' pages, and the handlers of its faults.

use alloc::boxed::Box;

use caisson_proto::addr::{Gpa, PAGE_SIZE};

use crate::platform::Platform;
use crate::ram::Ram;

/// Where the pages lie: in the hole below 4 GiB, where no device is.
pub const BASE: u64 = 0xf000_0000;
/// How many there are: enough for three operands on two pages each.
pub const PAGES: u64 = 32;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Present, writable, accessed, dirty.
const OWN: u64 = 0x63;

/// The page of the handlers: 32 gates, a task state segment, 32 times HLT, and their stack at the end.
const HANDLERS: u64 = BASE;
/// Bytes of the gates.
pub const GATES: u64 = 32 * 16;
/// Where the task state segment is in it, and its length.
pub const TASK: u64 = GATES;
/// See [`TASK`].
pub const TASK_BYTES: u64 = 0x68;
const STUBS: u64 = 0x400;
const HLT: u8 = 0xf4;
/// Where the error code lies in it after a fault: below ss, rsp, rflags, cs and rip.
const ERROR: u64 = PAGE_SIZE - 6 * 8;

/// The exception whose handler begins at this offset of the handlers' page.
pub fn vector_at(offset: u64) -> Option<u8> {
    offset.checked_sub(STUBS).filter(|at| *at < 32).map(|at| at as u8)
}

/// The error code that the last fault pushed.
pub fn error_code(platform: &impl Platform) -> u32 {
    let mut bytes = [0; 4];
    let _ = platform.read(Gpa(HANDLERS + ERROR), &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Page tables in the making.
pub struct Tables<'a, P> {
    platform: &'a mut P,
    ram: &'a mut Ram,
    /// The next free page.
    next: u64,
}

impl<'a, P: Platform> Tables<'a, P> {
    /// A copy of the root at `root`.
    pub fn new(platform: &'a mut P, ram: &'a mut Ram, root: u64) -> Option<Self> {
        let mut tables = Self { platform, ram, next: BASE + PAGE_SIZE };
        tables.copy(root & ADDRESS)?;
        Some(tables)
    }

    /// The root.
    pub const fn root(&self) -> u64 {
        BASE + PAGE_SIZE
    }

    /// A free page.
    pub fn page(&mut self) -> Option<u64> {
        let page = self.next;
        self.next += PAGE_SIZE;
        (page < BASE + PAGES * PAGE_SIZE).then_some(page)
    }

    /// A free page with the contents of one in guest memory.
    pub fn copy(&mut self, from: u64) -> Option<u64> {
        let mut bytes = Box::new([0; PAGE_SIZE as usize]);
        self.ram.read(self.platform, from, &mut *bytes).ok()?;
        let page = self.page()?;
        self.platform.write(Gpa(page), &*bytes).then_some(page)
    }

    /// Writes into these pages.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Option<()> {
        self.platform.write(Gpa(at), bytes).then_some(())
    }

    fn entry(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.platform.read(Gpa(at), &mut bytes).then_some(u64::from_le_bytes(bytes))
    }

    /// A free page full of the small pages that a large one consists of.
    fn split(&mut self, large: u64, shift: u32) -> Option<u64> {
        let page = self.page()?;
        // Bit 12 of a large page is what bit 7 of a small one is; devices' memory types don't matter here.
        let (keep, step) = if shift == 30 { (LARGE, 1 << 21) } else { (0, 1 << 12) };
        let first = large & ADDRESS & !((1 << shift) - 1);
        for index in 0..512 {
            let entry = (first + index * step) | large & (NO_EXECUTE | 0xf7f) | keep;
            self.write(page + 8 * index, &entry.to_le_bytes())?;
        }
        Some(page)
    }

    /// Maps the page of `linear` to the page at `target`, with the guest's rights. It must be mapped.
    pub fn redirect(&mut self, linear: u64, target: u64) -> Option<()> {
        let mut table = self.root();
        for shift in [39, 30, 21] {
            let at = table + (linear >> shift & 511) * 8;
            let entry = self.entry(at).filter(|entry| entry & PRESENT != 0)?;
            let is_own = (BASE..BASE + PAGES * PAGE_SIZE).contains(&(entry & ADDRESS));
            table = match entry & ADDRESS {
                own if is_own && entry & LARGE == 0 => own,
                _ if entry & LARGE != 0 && shift != 39 => self.split(entry, shift)?,
                theirs => self.copy(theirs)?,
            };
            let rights = entry & (NO_EXECUTE | 0xfff & !LARGE);
            self.write(at, &(table | rights).to_le_bytes())?;
        }
        let at = table + (linear >> 12 & 511) * 8;
        let entry = self.entry(at).filter(|entry| entry & PRESENT != 0)?;
        self.write(at, &(target | entry & !ADDRESS | OWN & !2).to_le_bytes())
    }

    /// Maps the handlers for exceptions, in a 512th of the address space where none of `used` lies; their code
    /// segment's selector is `selector`. Where they are.
    pub fn handlers(&mut self, used: &[u64], selector: u16) -> Option<u64> {
        let slot = (256..512).rev().find(|slot| used.iter().all(|linear| linear >> 39 & 511 != *slot))?;
        let linear = ((slot << 39) as i64) << 16 >> 16;
        let linear = linear as u64;
        let mut table = self.root() + 8 * slot;
        for _ in 0..3 {
            let next = self.page()?;
            self.write(next, &[0; PAGE_SIZE as usize])?;
            self.write(table, &(next | OWN).to_le_bytes())?;
            table = next;
        }
        self.write(table, &(HANDLERS | OWN).to_le_bytes())?;
        for vector in 0..32 {
            let [a, b, c, d, rest @ ..] = (linear + STUBS + vector).to_le_bytes();
            let [low, high] = selector.to_le_bytes();
            // An interrupt gate on the first stack of the task state segment.
            let gate = [a, b, low, high, 1, 0x8e, c, d];
            self.write(HANDLERS + 16 * vector, &gate)?;
            self.write(HANDLERS + 16 * vector + 8, &[rest.as_slice(), &[0; 4]].concat())?;
        }
        self.write(HANDLERS + TASK, &[0; TASK_BYTES as usize])?;
        self.write(HANDLERS + TASK + 0x24, &(linear + PAGE_SIZE).to_le_bytes())?;
        self.write(HANDLERS + STUBS, &[HLT; 32])?;
        Some(linear)
    }
}
