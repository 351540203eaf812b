//! What the tables ask of the machine under them: `kernel/hw` on silicon and QEMU, `board/host` in simulation.
//!
//! Every method is called with interrupts off, after everything was checked: none may fail past the point where a
//! change is visible, except as its result says.

use crate::prelude::*;
use caisson_proto::{kernel::Features, mailbox};

/// Frames that page tables may be made from. The taker turns them into tables; they are the kernel's already.
pub trait TablePool {
    /// One zeroed kernel frame.
    fn take(&mut self) -> Option<Frame>;
    /// An empty table that isn't used any more.
    fn give_back(&mut self, frame: Frame);
}

/// How something ends that answers nothing.
pub type Outcome = Result<(), Status>;

/// Refuses what doesn't hold.
///
/// # Errors
/// `status` unless `holds`.
pub fn ensure(holds: bool, status: Status) -> Outcome {
    if holds { Ok(()) } else { Err(status) }
}

/// Where an operation takes tables from.
pub type Pool<'a> = &'a mut dyn TablePool;

/// A mapping that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Where it was.
    pub gfn: Gfn,
    /// The first frame.
    pub frame: Frame,
    /// 1, or 512 for a large page.
    pub pages: u64,
}

/// What a page is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The page's frame.
    pub frame: Frame,
    /// Pages of the entry that maps it: 1 or 512.
    pub pages: u64,
    /// What it grants.
    pub access: Access,
}

/// The secure processor's mailbox (55766, chapter 4).
pub struct Mailbox {
    /// Command and response; low and high half of the buffer's address.
    pub registers: [&'static AtomicU32; 3],
    /// Buffers at the beginning of a frame each: of commands that the processor only reads, and of those that it writes where
    /// that takes pages of its own.
    pub command: [&'static [AtomicU64; mailbox::BUFFER_BYTES / 8]; 2],
    /// The first of these frames; those of the data follow on the second.
    pub first: Frame,
    /// The RMP, and its first frame.
    pub rmp: (Rmp, Frame),
}

/// The machine.
pub trait Machine: Copy {
    /// The time-stamp counter.
    fn now(&self) -> u64;
    /// Ticks of it in a millisecond.
    fn tsc_khz(&self) -> u64;
    /// What it can do.
    fn features(&self) -> Features;
    /// ASIDs of the SVM, and those of encrypted VMs as `MachineInfo` tells them.
    fn asids(&self) -> (u32, u32);
    /// Makes another CPU enter the kernel.
    fn interrupt_cpu(&self, cpu: CpuId);
    /// Called in every wait for another CPU: answers what others asked of this one.
    fn relax(&self);
    /// Sets this CPU's timer; replaces what was set. `u64::MAX`: none.
    fn set_timer(&self, at: u64);
    /// Tells the log.
    fn log(&self, event: Event);
    /// Ends the machine.
    fn power_off(&self, status: u8);

    /// Makes the space of a service the loaded one, and its ports accessible.
    fn load_space(&self, slot: usize);
    /// Maps pages of one service in the lease window of another. Nothing is mapped on failure.
    ///
    /// # Errors
    /// [`Status::BadLease`] if a page isn't there, or is to be written and isn't writable.
    fn lend(&self, from: usize, to: usize, lease: Lease) -> Result<Lease, Status>;
    /// Empties the lease window of a service, which has so many pages.
    fn take_back(&self, slot: usize, pages: u64);
    /// Makes the image of a service pristine. Returns its entry point.
    fn reset_service(&self, slot: usize) -> u64;

    /// Makes a free frame the kernel's: maps it, zeroed.
    fn adopt(&self, frame: Frame);
    /// Unmaps a frame of the kernel's.
    fn disown(&self, frame: Frame);
    /// Makes every CPU forget translations of the host's. They have when this returns.
    fn flush_translations(&self);
    /// Zeroes frames that are mapped nowhere.
    fn zero(&self, first: Frame, pages: u64);
    /// Executes WBNOINVD on this CPU, or WBINVD where that is lacking or asked for.
    fn write_back(&self, invalidate: bool);
    /// Flushes every line of frames out of all caches: those of the guest with this ASID, or the host's for 0. Where the
    /// caches are coherent across encryption (SME_COHERENT) that is the same, or nothing.
    fn flush_lines(&self, first: Frame, pages: u64, asid: u32);
    /// RMPUPDATE. Nothing where there is no RMP.
    ///
    /// # Errors
    /// [`Status::State`] if the processor has the frame, or its entry is of the other size.
    fn rmp_update(&self, frame: Frame, to: Entry) -> Outcome;
    /// PSMASH. Nothing where there is no RMP.
    ///
    /// # Errors
    /// [`Status::State`] if the frame's entry isn't a guest's of 2 MiB.
    fn rmp_smash(&self, frame: Frame) -> Outcome;
    /// Copies between memory and a page that the service in user mode has to itself, from its beginning on, within one frame.
    ///
    /// # Errors
    /// [`Status::BadLease`] if that page isn't there, isn't the service's own, or is to be written and isn't writable.
    fn copy(&self, user: u64, at: Spa, bytes: u64, out: bool) -> Outcome;
    /// The secure processor's mailbox; `None` without a secure processor.
    fn mailbox(&self) -> Option<&'static Mailbox>;

    /// Maps frames in a nested table; 512 aligned pages become a large page.
    ///
    /// # Errors
    /// [`Status::State`] if something is mapped there, [`Status::Exhausted`] without tables; nothing is mapped then.
    fn nested_map(&self, root: Frame, gfn: Gfn, frame: Frame, pages: u64, access: Access, pool: Pool) -> Outcome;
    /// Removes the first mapping in a range that ends before `end`.
    ///
    /// # Errors
    /// [`Status::Exhausted`] if a large page reaches out of the range and can't be split for lack of a table.
    fn nested_unmap(&self, root: Frame, from: Gfn, end: Gfn, pool: Pool) -> Result<Option<Removed>, Status>;
    /// What a guest frame is mapped to.
    fn nested_look_up(&self, root: Frame, gfn: Gfn) -> Option<Mapping>;
    /// Makes one large page of the 512 around a guest frame, or splits it.
    ///
    /// # Errors
    /// [`Status::State`] if they aren't alike, in a row and aligned, or not large; [`Status::Exhausted`] without a table.
    fn nested_resize(&self, root: Frame, gfn: Gfn, large: bool, pool: Pool) -> Outcome;
    /// Gives every table below and with an empty root back to the pool.
    fn nested_drop(&self, root: Frame, pool: Pool);
    /// Maps guest frames in the window of the guest's handler.
    ///
    /// # Errors
    /// As [`nested_map`](Self::nested_map).
    fn window_map(&self, slot: usize, gfn: Gfn, frame: Frame, pages: u64, pool: Pool) -> Outcome;
    /// Removes them. Other CPUs may use them until [`flush_translations`](Self::flush_translations).
    ///
    /// # Errors
    /// [`Status::Exhausted`] if a large page must be split and there is no table.
    fn window_unmap(&self, slot: usize, gfn: Gfn, pages: u64, pool: Pool) -> Outcome;
    /// Gives back every table that the guest's window took.
    fn window_drop(&self, slot: usize, pool: Pool);

    /// Takes the seven adopted frames of a vCPU from `first` on and sets reset state; its state page appears in the
    /// handler's space, and `root` is its view.
    fn vcpu_create(&self, vcpu: Context, handler: usize, first: Frame, asid: u32, root: Frame);
    /// Gives a vCPU, which doesn't run, its VM's ASID.
    fn vcpu_asid(&self, vcpu: Context, asid: u32);
    /// Forgets a vCPU; its state page disappears from the handler.
    fn vcpu_drop(&self, vcpu: Context, handler: usize);
    /// Loads groups from the state page.
    ///
    /// # Errors
    /// [`Status::Range`] if the processor would refuse them; nothing is loaded.
    fn vcpu_load(&self, vcpu: Context, groups: Groups) -> Outcome;
    /// Fills groups of the state page.
    fn vcpu_save(&self, vcpu: Context, groups: Groups);
    /// Applies a vmm's reply.
    ///
    /// # Errors
    /// [`Status::Range`] if the processor would refuse it; nothing is applied.
    fn vcpu_resume(&self, vcpu: Context, resume: &Resume, root: Frame) -> Outcome;
    /// What the vmm is told when the kernel itself makes a vCPU exit with `code`.
    fn vcpu_moment(&self, vcpu: Context, code: u16) -> Exit;
    /// This CPU is about to enter the guest of a vCPU of its own: flushes the translations of its ASID first.
    fn vcpu_flush(&self, vcpu: Context);
}
