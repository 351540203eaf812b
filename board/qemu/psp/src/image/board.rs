//! What surrounds the processor: memory and CPUs by the kernel's `silicon` operations, random bytes by the CPU.

use caisson_proto::addr::{CpuId, Frame, PAGE_SIZE, Spa};
use caisson_proto::kernel::{SiliconCopy, SiliconCpu};
use caisson_proto::rmp;
use caisson_qemu_psp::buffer::field;
use caisson_qemu_psp::rmp::{Entry, Table};
use caisson_qemu_psp::{Asid, Board, Cpu, Fault, MemoryKey, crypto};
use caisson_rt::random::rdrand;
use caisson_rt::{LeasePage, kernel, kernel_borrow, kernel_lend, time};

pub struct OnKernel {
    /// What is lent to the kernel: all that goes to memory and comes from there passes through it.
    page: &'static mut LeasePage,
    /// Frame numbers are below this.
    frames: u64,
    /// The first frame of the RMP; 0 for none.
    rmp: Frame,
    /// What random bytes are made of where the CPU has none.
    pool: [u8; 32],
}

/// An address range in parts that lie in one frame each: address, and where the part lies in the range.
fn parts(at: Spa, length: u64) -> impl Iterator<Item = (Spa, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = Spa(at.0 + done);
        let bytes = (PAGE_SIZE - at.0 % PAGE_SIZE).min(length - done);
        let range = done as usize..(done + bytes) as usize;
        done += bytes;
        (bytes != 0).then_some((at, range))
    })
}

impl OnKernel {
    pub fn new(page: &'static mut LeasePage, frames: u64) -> Self {
        // Every CPU shows the same.
        let rmp = kernel(&SiliconCpu { cpu: CpuId(0) }).map_or(Frame(0), |cpu| cpu.rmp);
        Self { page, frames, rmp, pool: [0; 32] }
    }

    /// Whether random bytes come from the CPU.
    pub fn random_is_the_cpus(&self) -> bool {
        rdrand().is_some()
    }

    /// The RMP, if there is one.
    fn table(&self) -> Option<Table> {
        (self.rmp != Frame(0)).then_some(Table { first: self.rmp, frames: self.frames })
    }

    /// Where a frame's entry lies.
    fn entry(&self, frame: Frame) -> Option<Spa> {
        self.table()?.entry(frame)
    }

    /// Eight random bytes. Without RDRAND they are derived from the time-stamp counter, whose every value can be guessed.
    fn word(&mut self) -> [u8; 8] {
        if let Some(word) = rdrand() {
            return word.to_le_bytes();
        }
        self.pool = crypto::hmac(&self.pool, &[&time::now().0.to_le_bytes()]);
        crypto::derive(&self.pool, "random", &[])
    }
}

impl Board for OnKernel {
    /// The kernel says of each frame whether the processor reaches it: not the kernel's own, and nothing that is no memory.
    fn is_memory(&self, at: Spa, length: u64) -> bool {
        let Some(end) = at.0.checked_add(length).filter(|end| *end <= self.frames * PAGE_SIZE) else { return false };
        let entries = |table: Table| at.0 < table.end().0 && table.first.spa().0 < end;
        let reached = |at| kernel_lend(&SiliconCopy { at, bytes: 0, write: true }, self.page).is_ok();
        !self.table().is_some_and(entries) && parts(at, length).all(|(at, _)| reached(at))
    }

    fn read(&mut self, at: Spa, into: &mut [u8]) -> Result<(), Fault> {
        for (at, range) in parts(at, into.len() as u64) {
            let copy = SiliconCopy { at, bytes: range.len() as u64, write: false };
            kernel_borrow(&copy, self.page).map_err(|_| Fault)?;
            let from = &self.page.0[..range.len()];
            into[range].copy_from_slice(from);
        }
        Ok(())
    }

    fn write(&mut self, at: Spa, bytes: &[u8]) -> Result<(), Fault> {
        for (at, range) in parts(at, bytes.len() as u64) {
            let copy = SiliconCopy { at, bytes: range.len() as u64, write: true };
            self.page.0[..range.len()].copy_from_slice(&bytes[range]);
            kernel_lend(&copy, self.page).map_err(|_| Fault)?;
        }
        Ok(())
    }

    /// There are no keys in these memory controllers: what is private lies in memory as it is.
    fn write_private(&mut self, _: Asid, at: Spa, bytes: &[u8]) -> Result<(), Fault> {
        self.write(at, bytes)
    }

    fn install_key(&mut self, _: Asid, _: &MemoryKey) {}

    fn remove_key(&mut self, _: Asid) {}

    fn flush_fabric(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn rmp(&mut self, frame: Frame) -> Option<Entry> {
        let mut bytes = [0; 16];
        self.read(self.entry(frame)?, &mut bytes).ok()?;
        let word = |at| u64::from_le_bytes(field(&bytes, at));
        Some(Entry::from_table(rmp::Entry([word(0), word(8)])))
    }

    fn set_rmp(&mut self, frame: Frame, entry: Entry) -> Result<(), Fault> {
        let [low, high] = entry.to_table().0.map(u64::to_le_bytes);
        let at = self.entry(frame).ok_or(Fault)?;
        // The kernel looks at the first word.
        self.write(Spa(at.0 + 8), &high)?;
        self.write(at, &low)
    }

    fn init_rmp(&mut self) -> Result<(), Fault> {
        let end = self.table().ok_or(Fault)?.end().0;
        let page = [0; PAGE_SIZE as usize];
        let mut pages = (self.rmp.spa().0..end).step_by(PAGE_SIZE as usize);
        pages.try_for_each(|at| self.write(Spa(at), &page[..(end - at).min(PAGE_SIZE) as usize]))
    }

    /// A CPU that the kernel doesn't know never writes back, so whoever waits for it waits for ever.
    fn cpu(&mut self, cpu: CpuId) -> Cpu {
        let cpu = kernel(&SiliconCpu { cpu });
        let snp_enabled = cpu.is_ok_and(|cpu| cpu.rmp != Frame(0));
        Cpu { wbinvds: cpu.map_or(0, |cpu| cpu.wbinvds), snp_enabled, host_save: Spa(0) }
    }

    fn random(&mut self, into: &mut [u8]) {
        for chunk in into.chunks_mut(8) {
            let word = self.word();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
