//! What each CPU has to itself, at one address: no index, no lock, no segment register.

use core::cell::{Cell, UnsafeCell};

use caisson_core::cpu::{Local, UserFrame};
use caisson_proto::addr::{CpuId, PAGE_SIZE};

use crate::layout::{PERCPU, PERCPU_PAGES};
use crate::traps::Hooks;

/// The beginning of a CPU's own area. Made by the boot CPU; then only its own CPU touches it, with interrupts off or
/// in an interrupt handler, and never holds a reference into a cell across a point where one may come.
#[repr(C)]
pub struct PerCpu {
    /// What a system call stored and what the next SYSRET loads.
    pub(crate) frame: UnsafeCell<UserFrame>,
    /// The kernel's handlers.
    pub(crate) hooks: Cell<Hooks>,
    /// CR3 of this CPU.
    pub(crate) cr3: u64,
    /// The PDPT in slot 0, and the generation of its space when CR3 was last loaded.
    pub(crate) loaded: [Cell<u64>; 2],
    /// What the timer is set to; 0: it is off.
    pub(crate) timer: Cell<u64>,
    /// Whose ports the I/O permission map has.
    pub(crate) ports_owner: Cell<u32>,
    /// Non-maskable interrupts that came.
    pub(crate) nmis: Cell<u64>,
    /// Global descriptor table.
    pub(crate) gdt: [Cell<u64>; 8],
    /// The kernel's own state.
    pub(crate) local: Local,
}

const _: () = assert!(size_of::<PerCpu>() as u64 <= PERCPU_PAGES * PAGE_SIZE);

impl PerCpu {
    pub(crate) fn new(cpu: CpuId, cr3: u64) -> Self {
        Self {
            frame: UnsafeCell::new(UserFrame::default()),
            hooks: Cell::new(Hooks::NONE),
            cr3,
            loaded: [const { Cell::new(0) }; 2],
            timer: Cell::new(0),
            ports_owner: Cell::new(u32::MAX),
            nmis: Cell::new(0),
            gdt: crate::segments::gdt(),
            local: Local::new(cpu),
        }
    }
}

/// This CPU's area. Not before `init` on the boot CPU.
#[inline]
pub(crate) fn this() -> &'static PerCpu {
    // SAFETY: mapped here on every CPU before any code of the kernel runs on it, and for good. It isn't `Sync`, so
    // the reference stays on this CPU; kernel code doesn't move between CPUs.
    unsafe { &*(PERCPU as *const PerCpu) }
}

/// The kernel's state of this CPU.
#[inline]
pub fn local() -> &'static Local {
    &this().local
}

/// This CPU.
#[inline]
pub fn cpu() -> CpuId {
    this().local.cpu
}
