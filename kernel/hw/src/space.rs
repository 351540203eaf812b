//! A service's address space: one slot of the PML4, from 0 to `USER_END`.

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_core::machine::TablePool;
use caisson_proto::abi::{Lease, MAX_LEASE_PAGES, Status};
use caisson_proto::addr::{Frame, PAGE_SIZE, VPage};
use caisson_proto::kernel::Access;
use caisson_proto::layout::{LEASE, USER_END};

use crate::layout::OWN_PML4;
use crate::percpu::this;
use crate::tables::{Bits, Removed, Tables, entry, frame_of};

/// The space. Its PDPT is entered in the PML4 of the CPU where the service runs.
#[derive(Debug)]
pub struct Space {
    tables: Tables,
    generation: AtomicU64,
}

const LEASE_PAGE: u64 = LEASE / PAGE_SIZE;
const END_PAGE: u64 = USER_END / PAGE_SIZE;

/// Entry bits for an access. `None`: nothing may be both writable and executable, and reading is part of all.
fn bits(access: Access) -> Option<Bits> {
    let mut bits = Bits::USER | Bits::PRESENT;
    bits.set(Bits::WRITE, access.contains(Access::WRITE));
    bits.set(Bits::NX, !access.contains(Access::EXECUTE));
    let allowed = access.contains(Access::READ) && !access.contains(Access::WRITE | Access::EXECUTE);
    allowed.then_some(bits)
}

fn access(entry: u64) -> Access {
    let bits = Bits::from_bits_retain(entry);
    let mut access = Access::READ;
    access.set(Access::WRITE, bits.contains(Bits::WRITE));
    access.set(Access::EXECUTE, !bits.contains(Bits::NX));
    access
}

impl Space {
    /// The space whose PDPT is `root`: a zeroed kernel frame, mapped as long as the space exists.
    pub const fn new(root: Frame) -> Self {
        Self { tables: Tables::new(root, 3), generation: AtomicU64::new(1) }
    }

    /// Its PDPT.
    pub const fn root(&self) -> Frame {
        self.tables.root()
    }

    /// Maps pages; 512 aligned ones become a large page. Translations of what wasn't mapped aren't cached, so
    /// nothing is flushed.
    ///
    /// # Errors
    /// [`Status::Range`] outside the user half or for an access that isn't allowed, [`Status::State`] if something
    /// is mapped there, [`Status::Exhausted`] without tables. Nothing is mapped then.
    pub fn map(
        &self,
        page: VPage,
        frame: Frame,
        pages: u64,
        access: Access,
        pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let bits = bits(access).ok_or(Status::Range)?;
        if page.0.checked_add(pages).is_none_or(|end| end > END_PAGE) {
            return Err(Status::Range);
        }
        self.tables.map(page.0, frame, pages, bits, pool)
    }

    /// Removes the first mapping in `from..end`. The generation moves: this CPU forgets at its next [`load`],
    /// others that have it loaded must be interrupted to call [`load`] or `cpu::flush_user`.
    ///
    /// # Errors
    /// [`Status::Exhausted`] if a large page reaches out of the range and there is no table to split it.
    ///
    /// [`load`]: Self::load
    pub fn unmap_first(
        &self,
        from: VPage,
        end: VPage,
        pool: &mut dyn TablePool,
    ) -> Result<Option<Removed>, Status> {
        let removed = self.tables.unmap_first(from.0, end.0.min(END_PAGE), pool)?;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(removed)
    }

    /// Forgets all that is mapped in whole GiB from `first` to `end`, and gives their tables back.
    pub fn drop_tables(&self, first: VPage, end: VPage, pool: &mut dyn TablePool) {
        self.tables.drop_below((first.0 >> 18) as usize, (end.0 >> 18) as usize, pool);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The frame at a page, and what the service may do with it.
    pub fn lookup(&self, page: VPage) -> Option<(Frame, Access)> {
        let (value, span) = (page.0 < END_PAGE).then(|| self.tables.lookup(page.0)).flatten()?;
        Some((Frame(frame_of(value).0 + page.0 % span), access(value)))
    }

    /// Makes the tables of the lease window, so that [`lend`](Self::lend) needs none.
    ///
    /// # Errors
    /// [`Status::Exhausted`] without tables.
    pub fn prepare_lease(&self, pool: &mut dyn TablePool) -> Result<(), Status> {
        self.tables.slot(LEASE_PAGE, 1, Some(pool)).map(drop)
    }

    /// Maps pages of `lender` in this space's lease window, which is empty, and returns the lease as this service
    /// sees it.
    ///
    /// # Errors
    /// [`Status::BadLease`] if a page isn't there, or is to be written and isn't writable. Nothing is mapped then.
    pub fn lend(&self, lender: &Space, lease: Lease) -> Result<Lease, Status> {
        let pages = lease.pages.min(MAX_LEASE_PAGES);
        let mut bits = Bits::PRESENT | Bits::USER | Bits::NX;
        bits.set(Bits::WRITE, lease.write);
        for number in 0..pages {
            let lent = lender.lookup(VPage(lease.page.0 + number));
            let lent = lent.filter(|(_, access)| !lease.write || access.contains(Access::WRITE));
            let (Some((frame, _)), Ok(Some(slot))) =
                (lent, self.tables.slot(LEASE_PAGE + number, 1, None))
            else {
                self.take_back();
                return Err(Status::BadLease);
            };
            slot.store(entry(frame, bits), Ordering::Release);
        }
        Ok(Lease { page: VPage(LEASE_PAGE), pages, write: lease.write })
    }

    /// Empties the lease window. The generation moves if something was there.
    pub fn take_back(&self) {
        let mut any = 0;
        for number in 0..MAX_LEASE_PAGES {
            if let Ok(Some(slot)) = self.tables.slot(LEASE_PAGE + number, 1, None) {
                any |= slot.swap(0, Ordering::AcqRel);
            }
        }
        if any != 0 {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Makes this the space that is loaded here. Loads CR3 only if another one was, or if pages were removed since.
    #[inline]
    pub fn load(&self) {
        let cpu = this();
        let root = self.root().0;
        let generation = self.generation.load(Ordering::Acquire);
        if cpu.loaded[0].get() == root && cpu.loaded[1].get() == generation {
            return;
        }
        cpu.loaded[0].set(root);
        cpu.loaded[1].set(generation);
        let table = Bits::PRESENT | Bits::WRITE | Bits::USER;
        // SAFETY: slot 0 of this CPU's PML4, which is mapped there. The user half has no address that Rust uses.
        unsafe {
            (OWN_PML4 as *mut u64).write_volatile(entry(self.root(), table));
            core::arch::asm!("mov cr3, {}", in(reg) cpu.cr3, options(nostack));
        }
    }

    /// Whether this space is loaded on this CPU, at whatever generation.
    pub fn is_loaded(&self) -> bool {
        this().loaded[0].get() == self.root().0
    }
}
