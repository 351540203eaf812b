//! Loading a Multiboot image, and the information that it gets (Multiboot Specification 0.6.96, section 3.3).

use alloc::vec;
use alloc::vec::Vec;

use caisson_proto::supervisor::SetupError;
use caisson_proto::vmm::VmConfig;

use super::multiboot::Image;
use super::{Loaded, Protocol, acpi, entry, params};
use crate::platform::Platform;
use crate::ram::Ram;
use crate::virtio;

/// What eax holds at the entry.
pub const BOOT_MAGIC: u32 = 0x2bad_b002;

/// Where things lie, in bytes: at the end of low memory, since kernels that begin below it want the rest of it.
pub mod place {
    /// The first of it.
    pub const START: u64 = GDT;
    /// Global descriptor table.
    pub const GDT: u64 = 0x9_0000;
    /// The information itself.
    pub const INFO: u64 = 0x9_0100;
    /// Memory map.
    pub const MAP: u64 = 0x9_0200;
    /// List of modules: the initrd.
    pub const MODULES: u64 = 0x9_0400;
    /// The loader's name.
    pub const LOADER: u64 = 0x9_0500;
    /// Command line.
    pub const CMDLINE: u64 = 0x9_1000;
}

/// Flags of the information: memory sizes, command line, modules, memory map, loader's name.
const FLAGS: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// Bytes of the information up to the last field that a flag names.
const INFO_BYTES: usize = 88;
const LOADER_NAME: &[u8] = b"Caisson\0";

/// Puts the image, the initrd as its only module, and the information into memory.
pub(super) fn load(
    platform: &mut impl Platform, ram: &mut Ram, config: &VmConfig, image: &Image, initrd: &[u8],
) -> Result<Loaded, SetupError> {
    // Right behind the kernel, which looks for free memory from its own end on.
    let initrd_at = if initrd.is_empty() { 0 } else { image.end.max(super::place::HIGH).next_multiple_of(4096) };
    let end = image.end.max(initrd_at + initrd.len() as u64);
    if end > ram.low_end() {
        return Err(SetupError::TooSmall);
    }
    for segment in &image.segments {
        // Memory is zero where nothing was written.
        if !segment.contents.is_empty() {
            ram.write(platform, segment.address, segment.contents)?;
        }
    }
    if !initrd.is_empty() {
        ram.write(platform, initrd_at, initrd)?;
    }
    // As other loaders have it: the first word names the kernel.
    let cmdline = [config.name.as_bytes(), b" ", config.cmdline.as_bytes(), b"\0"].concat();
    let map = memory_map(ram);
    let modules: Vec<u8> = [initrd_at, initrd_at + initrd.len() as u64, place::CMDLINE, 0]
        .iter()
        .flat_map(|&value| (value as u32).to_le_bytes())
        .collect();
    ram.write(platform, place::CMDLINE, &cmdline)?;
    ram.write(platform, place::LOADER, LOADER_NAME)?;
    ram.write(platform, place::MODULES, &modules)?;
    ram.write(platform, place::MAP, &map)?;
    ram.write(platform, place::INFO, &info(ram, map.len(), !initrd.is_empty()))?;
    ram.write(platform, place::GDT, &entry::gdt_32())?;
    ram.write(platform, super::place::ACPI, &acpi::tables(super::place::ACPI, config.vcpus, virtio::count(config)))?;
    Ok(Loaded { protocol: Protocol::Multiboot, entry: image.entry, kernel_end: image.end, initrd: initrd_at })
}

/// The memory map in Multiboot's form: each entry is preceded by its length.
fn memory_map(ram: &Ram) -> Vec<u8> {
    let mut map = Vec::new();
    for region in params::e820(ram) {
        map.extend_from_slice(&20_u32.to_le_bytes());
        map.extend_from_slice(&region.start.to_le_bytes());
        map.extend_from_slice(&region.bytes.to_le_bytes());
        map.extend_from_slice(&region.kind.to_le_bytes());
    }
    map
}

fn info(ram: &Ram, map_bytes: usize, module: bool) -> Vec<u8> {
    let mut info = vec![0; INFO_BYTES];
    let mut put = |at: usize, value: u64| {
        if let Some(target) = info.get_mut(at..at + 4) {
            target.copy_from_slice(&(value as u32).to_le_bytes());
        }
    };
    put(0, FLAGS.into());
    put(4, super::place::LOW_END >> 10);
    put(8, (ram.low_end() - super::place::HIGH) >> 10);
    put(16, place::CMDLINE);
    put(20, module.into());
    put(24, place::MODULES);
    put(44, map_bytes as u64);
    put(48, place::MAP);
    put(64, place::LOADER);
    info
}
