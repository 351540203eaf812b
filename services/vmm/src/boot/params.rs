//! The boot parameters ("zero page") and what they point to (Linux's arch/x86/include/uapi/asm/bootparam.h).

use alloc::vec;
use alloc::vec::Vec;

use super::bzimage::{HEADER, Image};
use super::place;
use crate::ram::{HIGH_START, Ram};

/// Kind of an e820 entry.
pub const USABLE: u32 = 1;
/// Kind of an e820 entry.
pub const RESERVED: u32 = 2;
/// Setup data: a random seed.
const SETUP_RNG_SEED: u32 = 9;
/// Loader id "none of the registered".
const LOADER: u8 = 0xff;

mod offset {
    pub const ACPI_RSDP: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const SETUP_DATA: usize = 0x250;
    pub const E820_TABLE: usize = 0x2d0;
}

/// A piece of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: u32,
}

/// The memory map that the guest sees.
pub fn e820(ram: &Ram) -> Vec<Region> {
    let region = |start, end: u64, kind| Region { start, bytes: end.saturating_sub(start), kind };
    let mut map = vec![
        region(0, place::LOW_END, USABLE),
        region(place::LOW_END, place::HIGH, RESERVED),
        region(place::HIGH, ram.low_end(), USABLE),
    ];
    if ram.high_end() > HIGH_START {
        map.push(region(HIGH_START, ram.high_end(), USABLE));
    }
    map
}

/// What the boot parameters say beside the header.
#[derive(Clone, Debug)]
pub struct Given {
    /// The memory map.
    pub memory: Vec<Region>,
    /// Start and length of the initrd.
    pub initrd: (u64, u64),
    /// Where the protected-mode part was loaded.
    pub code: u64,
}

/// The page of boot parameters.
pub fn zero_page(image: &Image, given: &Given) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(target) = page.get_mut(at..at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
    };
    let (initrd, initrd_bytes) = given.initrd;
    put(HEADER, image.header);
    put(offset::TYPE_OF_LOADER, &[LOADER]);
    put(offset::CODE32_START, &(given.code as u32).to_le_bytes());
    put(offset::RAMDISK_IMAGE, &(initrd as u32).to_le_bytes());
    put(offset::RAMDISK_SIZE, &(initrd_bytes as u32).to_le_bytes());
    put(offset::EXT_RAMDISK_IMAGE, &((initrd >> 32) as u32).to_le_bytes());
    put(offset::CMD_LINE_PTR, &(place::CMDLINE as u32).to_le_bytes());
    put(offset::SETUP_DATA, &place::SEED.to_le_bytes());
    put(offset::ACPI_RSDP, &place::ACPI.to_le_bytes());
    put(offset::E820_ENTRIES, &[given.memory.len() as u8]);
    for (index, region) in given.memory.iter().enumerate() {
        let at = offset::E820_TABLE + index * 20;
        put(at, &region.start.to_le_bytes());
        put(at + 8, &region.bytes.to_le_bytes());
        put(at + 16, &region.kind.to_le_bytes());
    }
    page
}

/// Setup data with a seed for the guest's random generator.
pub fn seed(seed: &[u8; 32]) -> Vec<u8> {
    let mut data = Vec::with_capacity(48);
    data.extend_from_slice(&0_u64.to_le_bytes());
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(seed.len() as u32).to_le_bytes());
    data.extend_from_slice(seed);
    data
}
