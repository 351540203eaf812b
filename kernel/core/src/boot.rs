//! What a board tells the kernel: the machine as it was found, in board-neutral terms.

use crate::prelude::*;

/// A range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: Spa,
    /// Length in bytes.
    pub bytes: u64,
}

/// Where the emulation of a board differs from silicon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Act as if CPUID reported WBNOINVD (F3 0F 09 is executed; old CPUs take it for WBINVD).
    pub assume_wbnoinvd: bool,
    /// An interrupt that is injected with EVENTINJ may be delivered twice, so interrupts go in as V_IRQ, and again if an exit
    /// lost that. EXITINTINFO reports one from V_IRQ as type 3.
    pub interrupts_by_virq: bool,
    /// The CPU pushes an injected error code only for vectors 8, 10 to 14 and 17.
    pub few_error_codes: bool,
}

/// What the kernel is started with. Built once, on the boot CPU.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// RAM that may be used, in whole pages; contains the kernel and the bundle.
    pub memory: heapless::Vec<Range, 32>,
    /// The kernel's image with its bss.
    pub kernel: Range,
    /// The bundle, page-aligned.
    pub bundle: Range,
    /// Local APIC ids of all CPUs, the boot CPU's first.
    pub cpus: heapless::Vec<u32, MAX_CPUS>,
    /// Local APIC registers.
    pub local_apic: Spa,
    /// Frequency of the local APICs' timers, undivided, in kHz.
    pub timer_khz: u64,
    /// I/O APIC registers.
    pub io_apic: Spa,
    /// Port of a device that takes log frames byte by byte without waiting, for the kernel's epitaph; 0 for none.
    pub log_port: u16,
    /// Port to which the status is written as a byte to end the machine (QEMU's isa-debug-exit); without one it halts.
    pub power_off: Option<u16>,
    /// ASIDs of encrypted VMs, as [`Machine`](caisson_proto::kernel::Machine) has them; they count where there is a
    /// secure processor.
    pub sev_asids: u32,
    /// Differences from silicon.
    pub quirks: Quirks,
}
