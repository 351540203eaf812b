//! What each CPU has to itself, at one address: no index, no lock, no segment register.

use crate::prelude::*;

/// The beginning of a CPU's own area. Made by the boot CPU; then only its own CPU touches it, with interrupts off or
/// in an interrupt handler, and never holds a reference into a cell across a point where one may come.
#[repr(C)]
pub(crate) struct PerCpu {
    /// What a system call stored and what the next SYSRET loads.
    pub frame: UnsafeCell<UserFrame>,
    /// CR3 of this CPU.
    pub cr3: u64,
    /// The version of the space in slot 0 when CR3 was last loaded.
    pub loaded: Cell<u64>,
    /// What the timer is set to.
    pub timer: Cell<u64>,
    /// Whose ports the I/O permission map has.
    pub ports_owner: Cell<u16>,
    /// Global descriptor table.
    pub gdt: [Cell<u64>; 7],
    /// Task state and I/O permission map.
    pub task: UnsafeCell<Task>,
    /// What guests can be given.
    pub svm: Features,
    /// Where the host's registers are that only VMLOAD restores. In the frame that follows the CPU keeps the others while
    /// a guest runs.
    pub host: Spa,
    /// The vCPU whose registers came to this CPU last.
    pub resident: Cell<Option<Context>>,
    /// The kernel's own state.
    pub local: Local,
}

const _: () = assert!(size_of::<PerCpu>() as u64 <= PERCPU_PAGES * PAGE_SIZE);

impl PerCpu {
    /// `host` are two frames for the host's registers.
    pub fn new(cpu: CpuId, root: Frame, features: Features, host: Frame) -> Self {
        Self {
            frame: UnsafeCell::new(UserFrame::default()),
            cr3: root.spa().0,
            loaded: Cell::new(0),
            timer: Cell::new(NEVER),
            ports_owner: Cell::new(NO_SERVICE),
            gdt: gdt(),
            task: UnsafeCell::new(Task::new()),
            svm: features,
            host: host.spa(),
            resident: Cell::new(None),
            local: Local::new(cpu),
        }
    }
}

/// This CPU's area. Not before `init` on the boot CPU.
pub(crate) fn this() -> &'static PerCpu {
    // SAFETY: mapped here on every CPU before any code of the kernel runs on it, and for good. It isn't `Sync`, so
    // the reference stays on this CPU; kernel code doesn't move between CPUs.
    unsafe { &*(PERCPU as *const PerCpu) }
}
