//! The structures of the PVH start protocol: Xen's `public/arch-x86/hvm/start_info.h`.

/// `StartInfo::magic`.
pub const MAGIC: u32 = 0x336e_c578;
/// `MapEntry::kind` of usable RAM.
pub const RAM: u32 = 1;

/// `hvm_start_info`, version 1, as far as it is read.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// 1 or more: the memory map is there.
    pub version: u32,
    /// Flags of the domain; not used.
    pub flags: u32,
    /// How many modules there are.
    pub modules: u32,
    /// Physical address of the first `hvm_modlist_entry`, which begins with its module's address and length.
    pub module_list: u64,
    /// Physical address of the command line, which ends with a zero.
    pub command_line: u64,
    /// Physical address of ACPI's RSDP; not used.
    pub rsdp: u64,
    /// Physical address of the first [`MapEntry`].
    pub memory_map: u64,
    /// How many there are.
    pub memory_map_entries: u32,
}

/// `hvm_memmap_table_entry`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MapEntry {
    /// Physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// As in ACPI's E820: [`RAM`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}
