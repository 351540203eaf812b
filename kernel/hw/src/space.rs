//! A service's address space: one slot of the PML4, from 0 to `USER_END`.

use caisson_proto::layout::{GUEST, LEASE, USER_END, VCPU_STATE};

use crate::prelude::*;

/// The space. Its PDPT is entered in the PML4 of the CPU where the service runs. All its tables are mapped kernel
/// frames. Changes to one space are the caller's to keep apart.
pub struct Space {
    /// What slot 0 of a PML4 has while it is loaded.
    top: u64,
    lease_table: Frame,
    /// Differs from that of every other space, and moves when something is removed.
    version: AtomicU64,
}

/// The last version that a space was given; 0 is none's.
static VERSIONS: AtomicU64 = AtomicU64::new(0);

/// Pages that an entry of the PDPT spans.
const GIB_PAGES: u64 = 1 << 18;
const LEASE_PAGE: u64 = LEASE / PAGE_SIZE;
const LEASE_INDEX: usize = (LEASE_PAGE % 512) as usize;
const STATE_INDEX: usize = (VCPU_STATE / PAGE_SIZE % 512) as usize;
// One table of the lowest level has the whole window, and behind it the state pages.
const _: () = assert!(LEASE_INDEX + MAX_LEASE_PAGES as usize <= STATE_INDEX && STATE_INDEX + MAX_VCPUS <= 512);
const _: () = assert!(LEASE >> 21 == VCPU_STATE >> 21);
pub(crate) const READ_WRITE: Access = Access::READ.union(Access::WRITE);
const _: () = assert!(GUEST.is_multiple_of(GIB_PAGES * PAGE_SIZE));

impl Space {
    /// An empty space, with three tables from the pool; `None` without.
    pub fn new(pool: Pool) -> Option<Self> {
        let root = pool.take()?;
        let lease_table = npt::reach(&mut Mapped, Tree { root, levels: 3 }, LEASE_PAGE, 1, pool).ok()?;
        let top = npt::entry(root, npt::TABLE);
        let space = Self { top, lease_table, version: AtomicU64::new(0) };
        space.changed();
        Some(space)
    }

    /// A CPU that loads it next forgets its translations.
    fn changed(&self) {
        self.version.store(VERSIONS.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
    }

    const fn tree(&self) -> Tree {
        Tree { root: npt::target(self.top), levels: 3 }
    }

    /// Maps pages, at most 512; 512 aligned ones become a large page. What wasn't mapped isn't cached, so nothing
    /// is flushed.
    ///
    /// # Errors
    /// [`Status::Range`] outside the user half, for an access without reading, or for one with both writing and
    /// executing; else as [`npt::map`]. Nothing is mapped then.
    pub fn map(&self, page: VPage, frame: Frame, pages: u64, access: Access, pool: Pool) -> Outcome {
        ensure(!access.contains(Access::WRITE | Access::EXECUTE), Status::Range)?;
        npt::map(&mut Mapped, self.tree(), Gfn(page.0), frame, pages, access, pool)
    }

    /// Removes every mapping of so many pages. The version moves: a CPU forgets at its next [`load`], and one that
    /// runs this space now must be interrupted to do so.
    ///
    /// # Errors
    /// As [`npt::unmap`].
    ///
    /// [`load`]: Self::load
    pub(crate) fn unmap(&self, from: VPage, pages: u64, pool: Pool) -> Outcome {
        let (mut at, end) = (Gfn(from.0), Gfn(from.0 + pages));
        while let Some(removed) = npt::unmap(&mut Mapped, self.tree(), at, end, pool)? {
            self.changed();
            at = Gfn(removed.gfn.0 + removed.pages);
        }
        Ok(())
    }

    /// Gives every table of the guest's window back, all from [`GUEST`] on. Nothing is mapped there any more.
    pub(crate) fn drop_guest(&self, pool: Pool) {
        for at in (GUEST / PAGE_SIZE / GIB_PAGES) as usize..(USER_END / PAGE_SIZE / GIB_PAGES) as usize {
            let value = Mapped.read(self.tree().root, at);
            if value != 0 {
                Mapped.write(self.tree().root, at, 0);
                npt::drop_all(&mut Mapped, Tree { root: npt::target(value), levels: 2 }, pool);
            }
        }
        self.changed();
    }

    /// Maps pages of `lender` in this space's lease window, which is empty, and returns the lease as this service
    /// sees it.
    ///
    /// # Errors
    /// [`Status::BadLease`] if a page isn't there, or is to be written and isn't writable. Nothing is mapped then.
    pub(crate) fn lend(&self, lender: &Self, lease: Lease) -> Result<Lease, Status> {
        let pages = lease.pages.min(MAX_LEASE_PAGES);
        let access = if lease.write { READ_WRITE } else { Access::READ };
        for number in 0..pages {
            let lent = lender.frame(lease.page.0 + number, access).inspect_err(|_| self.take_back(number))?;
            Mapped.write(self.lease_table, LEASE_INDEX + number as usize, npt::entry(lent, npt::leaf(access)));
        }
        Ok(Lease { page: VPage(LEASE_PAGE), pages, write: lease.write })
    }

    /// Maps the state page of the vCPU with this index, or nothing.
    pub(crate) fn show_state(&self, index: u8, page: Option<Frame>) {
        let entry = page.map_or(0, |frame| npt::entry(frame, npt::leaf(READ_WRITE)));
        Mapped.write(self.lease_table, STATE_INDEX + usize::from(index), entry);
        self.changed();
    }

    /// The frame of a page.
    ///
    /// # Errors
    /// [`Status::BadLease`] if the page isn't there, or doesn't grant this access.
    pub(crate) fn frame(&self, page: u64, access: Access) -> Result<Frame, Status> {
        let found = npt::look_up(&Mapped, self.tree(), Gfn(page)).filter(|it| it.access.contains(access));
        found.map(|it| it.frame).ok_or(Status::BadLease)
    }

    /// Empties the lease window, which has so many pages.
    pub(crate) fn take_back(&self, pages: u64) {
        (0..pages).for_each(|number| Mapped.write(self.lease_table, LEASE_INDEX + number as usize, 0));
        self.changed();
    }

    /// Makes this the space that is loaded here. Loads CR3 only if another one was, or if something was removed
    /// since: `true` then. Call it before ring 3 goes on, whenever the service or its space may have changed.
    #[inline(always)]
    pub(crate) fn load(&self) -> bool {
        let cpu = this();
        let wanted = self.version.load(Ordering::Acquire);
        if cpu.loaded.get() == wanted {
            return false;
        }
        cpu.loaded.set(wanted);
        // SAFETY: slot 0 of this CPU's PML4, which is mapped there. The user half has no address that Rust uses.
        unsafe {
            (OWN_PML4 as *mut u64).write_volatile(self.top);
            core::arch::asm!("mov cr3, {}", in(reg) cpu.cr3, options(nostack));
        }
        true
    }
}
