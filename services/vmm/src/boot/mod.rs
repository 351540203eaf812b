//! Starting a kernel: Linux by its 64-bit boot protocol, others by Multiboot.

pub mod acpi;
pub mod bzimage;
pub mod entry;
mod linux;
pub mod mbi;
pub mod multiboot;
pub mod params;

use caisson_proto::supervisor::SetupError;
use caisson_proto::vcpu::VcpuState;
use caisson_proto::vmm::VmConfig;

use crate::dev::pic::Pics;
use crate::platform::Platform;
use crate::ram::{NoMemory, Ram};

/// Where things lie in low memory for a Linux kernel, in bytes. All below the kernel and marked usable, except the
/// ACPI tables. What a Multiboot kernel gets lies elsewhere: see [`mbi::place`].
pub mod place {
    /// Global descriptor table.
    pub const GDT: u64 = 0x5000;
    /// Random seed, as setup data.
    pub const SEED: u64 = 0x6000;
    /// Boot parameters.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Page tables: six pages.
    pub const TABLES: u64 = 0x9000;
    /// Command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// End of usable memory below the legacy hole.
    pub const LOW_END: u64 = 0x9_fc00;
    /// ACPI tables.
    pub const ACPI: u64 = 0xe_0000;
    /// End of the legacy hole.
    pub const HIGH: u64 = 0x10_0000;
}

/// Where vCPU 0 begins, and what was put where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// By which rules.
    pub protocol: Protocol,
    /// Entry point.
    pub entry: u64,
    /// One past the memory that the kernel needs.
    pub kernel_end: u64,
    /// Start of the initrd; 0 without one.
    pub initrd: u64,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol.
    Linux,
    /// Multiboot, version 1.
    Multiboot,
}

impl Loaded {
    /// The 8259 pair as the kernel finds it. Multiboot leaves it as firmware had it: vectors 8 and 70 hex.
    pub fn pics(&self) -> Pics {
        let mut pics = Pics::default();
        if self.protocol == Protocol::Multiboot {
            for (port, value) in
                [(0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x70), (0xa1, 2), (0xa1, 1)]
            {
                pics.write(port, value);
            }
        }
        pics
    }

    /// The state in which vCPU 0 begins.
    pub fn state(&self, tsc_offset: u64) -> VcpuState {
        match self.protocol {
            Protocol::Linux => entry::boot_64(self.entry, tsc_offset),
            Protocol::Multiboot => entry::boot_32(self.entry, tsc_offset),
        }
    }
}

impl From<NoMemory> for SetupError {
    fn from(_: NoMemory) -> Self {
        Self::Memory
    }
}

/// Puts kernel, initrd, command line, tables and what tells of them into guest memory.
///
/// # Errors
/// `Kernel` if the image can't be booted, `TooSmall` if things don't fit, `Memory` if memory can't be had.
pub fn load(
    platform: &mut impl Platform, ram: &mut Ram, config: &VmConfig, kernel: &[u8], initrd: &[u8],
) -> Result<Loaded, SetupError> {
    // A Linux kernel may have both marks, and then wants its own protocol.
    match bzimage::Image::parse(kernel) {
        Ok(image) => linux::load(platform, ram, config, &image, initrd),
        Err(_) => {
            let image = multiboot::Image::parse(kernel).map_err(|_| SetupError::Kernel)?;
            mbi::load(platform, ram, config, &image, initrd)
        }
    }
}
