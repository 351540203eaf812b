//! Starting a Linux kernel by its 64-bit boot protocol (Linux's Documentation/x86/boot.rst).

pub mod acpi;
pub mod bzimage;
pub mod entry;
pub mod params;

use caisson_proto::supervisor::SetupError;
use caisson_proto::vmm::VmConfig;

use crate::platform::Platform;
use crate::ram::{NoMemory, Ram};

/// Where things lie in low memory, in bytes. All below the kernel and marked usable, except the ACPI tables.
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
    /// Entry point.
    pub entry: u64,
    /// One past the memory that the kernel needs.
    pub kernel_end: u64,
    /// Start of the initrd; 0 without one.
    pub initrd: u64,
}

impl From<NoMemory> for SetupError {
    fn from(_: NoMemory) -> Self {
        Self::Memory
    }
}

/// Puts kernel, initrd, command line, tables and boot parameters into guest memory.
///
/// # Errors
/// `Kernel` if the image can't be booted, `TooSmall` if things don't fit, `Memory` if memory can't be had.
pub fn load(
    platform: &mut impl Platform, ram: &mut Ram, config: &VmConfig, kernel: &[u8], initrd: &[u8],
) -> Result<Loaded, SetupError> {
    let image = bzimage::Image::parse(kernel).map_err(|_| SetupError::Kernel)?;
    let at = image.place(ram.low_end()).ok_or(SetupError::TooSmall)?;
    let kernel_end = at.saturating_add(image.init_size);
    if config.cmdline.len() as u64 > u64::from(image.cmdline_size) {
        return Err(SetupError::Config);
    }

    // As high as the protocol allows, where the kernel's decompressor doesn't run into it.
    let initrd_top = ram.low_end().min(u64::from(image.initrd_max).saturating_add(1));
    let initrd_at = initrd_top.saturating_sub(initrd.len() as u64) & !0xfff;
    if !initrd.is_empty() && initrd_at < kernel_end {
        return Err(SetupError::TooSmall);
    }

    ram.write(platform, at, image.protected)?;
    if !initrd.is_empty() {
        ram.write(platform, initrd_at, initrd)?;
    }
    ram.write(platform, place::CMDLINE, config.cmdline.as_bytes())?;
    ram.write(platform, place::CMDLINE + config.cmdline.len() as u64, &[0])?;
    ram.write(platform, place::ACPI, &acpi::tables(place::ACPI, config.vcpus))?;
    ram.write(platform, place::SEED, &params::seed(&config.seed))?;
    ram.write(platform, place::GDT, &entry::gdt())?;
    ram.write(platform, place::TABLES, &entry::identity_map(place::TABLES))?;
    let given = params::Given {
        memory: params::e820(ram),
        initrd: (if initrd.is_empty() { 0 } else { initrd_at }, initrd.len() as u64),
        code: at,
    };
    ram.write(platform, place::ZERO_PAGE, &params::zero_page(&image, &given))?;
    Ok(Loaded { entry: at + bzimage::ENTRY_64, kernel_end, initrd: given.initrd.0 })
}
