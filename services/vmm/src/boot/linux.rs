//! Linux's 64-bit boot protocol (Linux's Documentation/x86/boot.rst).

use caisson_proto::supervisor::SetupError;
use caisson_proto::vmm::VmConfig;

use super::{Loaded, Protocol, acpi, bzimage, entry, params, place};
use crate::platform::Platform;
use crate::ram::Ram;
use crate::virtio;

/// Puts everything where the kernel looks for it.
pub(super) fn load(
    platform: &mut impl Platform, ram: &mut Ram, config: &VmConfig, image: &bzimage::Image, initrd: &[u8],
) -> Result<Loaded, SetupError> {
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
    ram.write(platform, place::ACPI, &acpi::tables(place::ACPI, config.vcpus, virtio::count(config)))?;
    ram.write(platform, place::SEED, &params::seed(&config.seed))?;
    ram.write(platform, place::GDT, &entry::gdt())?;
    ram.write(platform, place::TABLES, &entry::identity_map(place::TABLES))?;
    let given = params::Given {
        memory: params::e820(ram),
        initrd: (if initrd.is_empty() { 0 } else { initrd_at }, initrd.len() as u64),
        code: at,
    };
    ram.write(platform, place::ZERO_PAGE, &params::zero_page(image, &given))?;
    Ok(Loaded { protocol: Protocol::Linux, entry: at + bzimage::ENTRY_64, kernel_end, initrd: given.initrd.0 })
}
