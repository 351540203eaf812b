//! The VM table: what the exit path reads without a lock, and what kernel operations change under the table lock.

use crate::prelude::*;
use heapless::Vec;

/// Table frames that a VM keeps in stock at the most.
pub const STOCK: usize = 64;
/// Tables that mapping a range of at most 512 pages takes at the most, nested and window together: two last-level
/// ones each where the range crosses a boundary, and two of each level above.
pub const TABLES_PER_MAP: usize = 12;

initial! {
    /// What the exit path reads.
    pub struct Vm {
        /// The id of the VM here, or the next one to be.
        pub id: Atomic<VmId> = Atomic::new(0),
        /// The service that handles its exits.
        pub handler: Atomic<ServiceId> = Atomic::new(0),
        /// 0 for an unused slot, else 1 + [`VmState`].
        state: Atomic<u8> = Atomic::new(0),
        /// Roots of its views; frame 0 for none.
        roots: [Atomic<Frame>; MAX_VIEWS] = array![Atomic::new(0); MAX_VIEWS],
        /// vCPUs that exist, a bit each.
        pub vcpus: AtomicU32 = AtomicU32::new(0),
        /// Its invalidation state.
        pub invalidation: Invalidation = Invalidation::new(),
    }
}

impl Vm {
    /// Its state; `None` for an unused slot.
    pub fn state(&self) -> Option<VmState> {
        VmState::ALL.get(usize::from(self.state.get()).checked_sub(1)?).copied()
    }

    /// The root of a view.
    pub fn root(&self, view: u8) -> Option<Frame> {
        self.roots.get(usize::from(view)).map(Atomic::get).filter(|root| root.0 != 0)
    }

    /// Begins a VM here. Under the table lock.
    pub fn begin(&self, slot: usize, handler: ServiceId, root: Frame) -> VmId {
        let id = VmId::new(slot as u16, self.id.get().generation());
        self.id.set(id);
        self.handler.set(handler);
        self.vcpus.store(0, Ordering::Release);
        self.invalidation.forget();
        for (view, cell) in self.roots.iter().enumerate() {
            cell.set(if view == 0 { root } else { Frame(0) });
        }
        self.state.set(1 + VmState::Alive as u8);
        id
    }

    /// Its vCPUs run no more; its pages are to be taken back.
    pub fn dying(&self) {
        self.state.set(1 + VmState::Dying as u8);
    }

    /// The slot is unused; its next holder has another generation.
    pub fn end(&self) {
        let id = self.id.get();
        self.state.set(0);
        self.id.set(VmId::new(id.index() as u16, (id.generation() + 1) & 0x7fff));
    }
}

/// Finds a VM that exists by its id.
///
/// # Errors
/// [`Status::Dead`] if the slot is unused or has another generation.
pub fn find(vms: &[Vm; MAX_VMS], id: VmId) -> Result<(usize, &Vm), Status> {
    vms.iter()
        .enumerate()
        .nth(id.index())
        .filter(|(_, vm)| vm.state().is_some() && vm.id.get() == id)
        .ok_or(Status::Dead)
}

initial! {
    /// The part of a VM that only kernel operations use.
    pub struct Books {
        /// Its kind.
        pub kind: VmKind = VmKind::Plain,
        /// Its ASID.
        pub asid: u32 = 0,
        /// Pages mapped in it.
        pub pages: u64 = 0,
        /// The kernel's frames for it, tables and vCPUs.
        pub kernel_frames: u64 = 0,
        /// First of the frames of each vCPU.
        pub vcpus: [Option<Frame>; MAX_VCPUS] = [None; MAX_VCPUS],
        /// Tables in stock, adopted and zeroed.
        pub stock: Vec<Frame, STOCK> = Vec::new(),
    }
}

impl TablePool for Vec<Frame, STOCK> {
    fn take(&mut self) -> Option<Frame> {
        self.pop()
    }
    fn give_back(&mut self, frame: Frame) {
        // A stock that is full can't happen while tables come out of it; if it did, the frame stays the VM's and is
        // found again by its entry in the frame table.
        let _ = self.push(frame);
    }
}
