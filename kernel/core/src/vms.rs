//! The VM table: what the exit path reads without a lock, and what kernel operations change under the table lock.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use caisson_proto::abi::{MAX_VCPUS, MAX_VIEWS, MAX_VMS, Status};
use caisson_proto::addr::{Frame, ServiceId, VmId};
use caisson_proto::kernel::{VmKind, VmState};
use heapless::Vec;

use crate::invalidation::Invalidation;
use crate::machine::TablePool;

/// Table frames that a VM keeps in stock at the most.
pub const STOCK: usize = 64;
/// Tables that mapping a range of at most 512 pages takes at the most, nested and window together: two last-level
/// ones each where the range crosses a boundary, and two of each level above.
pub const TABLES_PER_MAP: usize = 12;

/// What the exit path reads.
#[derive(Debug)]
pub struct Vm {
    id: AtomicU32,
    handler: AtomicU32,
    state: AtomicU8,
    /// Roots of its views as frame numbers; 0 for none.
    pub roots: [AtomicU64; MAX_VIEWS],
    /// vCPUs that exist, a bit each.
    pub vcpus: AtomicU32,
}

const ABSENT: u8 = 0;
const ALIVE: u8 = 1;
const DYING: u8 = 2;

impl Vm {
    /// An unused slot.
    pub const fn new() -> Self {
        Self {
            id: AtomicU32::new(0),
            handler: AtomicU32::new(0),
            state: AtomicU8::new(ABSENT),
            roots: [const { AtomicU64::new(0) }; MAX_VIEWS],
            vcpus: AtomicU32::new(0),
        }
    }

    /// The id of the VM here, or the next one to be.
    pub fn id(&self) -> VmId {
        VmId::from_bits(self.id.load(Ordering::Acquire))
    }

    /// The service that handles its exits.
    #[inline]
    pub fn handler(&self) -> ServiceId {
        ServiceId::from_bits(self.handler.load(Ordering::Acquire))
    }

    /// Its state; `None` for an unused slot.
    #[inline]
    pub fn state(&self) -> Option<VmState> {
        match self.state.load(Ordering::Acquire) {
            ALIVE => Some(VmState::Alive),
            DYING => Some(VmState::Dying),
            _ => None,
        }
    }

    /// The root of a view.
    pub fn root(&self, view: u8) -> Option<Frame> {
        let root = self.roots.get(usize::from(view))?.load(Ordering::Acquire);
        (root != 0).then_some(Frame(root))
    }

    /// Begins a VM here. Under the table lock.
    pub fn begin(&self, slot: usize, handler: ServiceId, root: Frame) -> VmId {
        let id = VmId::new(slot as u16, self.id().generation());
        self.id.store(id.bits(), Ordering::Release);
        self.handler.store(handler.bits(), Ordering::Release);
        self.vcpus.store(0, Ordering::Release);
        for (view, cell) in self.roots.iter().enumerate() {
            cell.store(if view == 0 { root.0 } else { 0 }, Ordering::Release);
        }
        self.state.store(ALIVE, Ordering::Release);
        id
    }

    /// Its vCPUs run no more; its pages are to be taken back.
    pub fn dying(&self) {
        self.state.store(DYING, Ordering::Release);
    }

    /// The slot is unused; its next holder has another generation.
    pub fn end(&self) {
        let id = self.id();
        self.state.store(ABSENT, Ordering::Release);
        let next = VmId::new(id.index() as u16, (id.generation() + 1) & 0x7fff);
        self.id.store(next.bits(), Ordering::Release);
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self::new()
    }
}

/// Finds a VM that exists by its id.
///
/// # Errors
/// [`Status::Dead`] if the slot is unused or has another generation.
pub fn find(vms: &[Vm; MAX_VMS], id: VmId) -> Result<(usize, &Vm), Status> {
    vms.iter().enumerate().nth(id.index()).filter(|(_, vm)| vm.state().is_some() && vm.id() == id).ok_or(Status::Dead)
}

/// The part of a VM that only kernel operations use.
#[derive(Debug)]
pub struct Books {
    /// Its kind.
    pub kind: VmKind,
    /// Its ASID.
    pub asid: u32,
    /// Pages mapped in it.
    pub pages: u64,
    /// The kernel's frames for it, tables and vCPUs.
    pub kernel_frames: u64,
    /// First of the frames of each vCPU.
    pub vcpus: [Option<Frame>; MAX_VCPUS],
    /// Its invalidation state.
    pub invalidation: Invalidation,
    /// Tables in stock, adopted and zeroed.
    pub stock: Vec<Frame, STOCK>,
}

impl Books {
    /// Of an unused slot.
    pub const fn new() -> Self {
        Self {
            kind: VmKind::Plain,
            asid: 0,
            pages: 0,
            kernel_frames: 0,
            vcpus: [None; MAX_VCPUS],
            invalidation: Invalidation::new(),
            stock: Vec::new(),
        }
    }
}

impl Default for Books {
    fn default() -> Self {
        Self::new()
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
